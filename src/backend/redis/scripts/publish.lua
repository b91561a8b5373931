-- An event where more than PUBLISH is to be done. ARGV[5] app, [6] name, [7] record, [8] for how
-- many milliseconds its channel remembers it, or '0', [9] if the application is told of it: the
-- line for the stream of facts.
if ARGV[9] then
  -- Else the node could not know what of an older session was done.
  if is_stale() then return { err = 'STALE' } end
  add_fact(ARGV[9])
end
if ARGV[8] ~= '0' then
  redis.call('SET', P .. 'last:' .. ARGV[5] .. ':' .. ARGV[6], ARGV[7], 'PX', ARGV[8])
end
redis.call('XADD', P .. 'log', 'MAXLEN', '~', 1000, '*', 'r', ARGV[7])
publish(ARGV[5], ARGV[6], ARGV[7])
return 1
