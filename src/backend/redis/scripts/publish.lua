-- An event where more than PUBLISH is to be done. ARGV[5] app, [6] name, [7] record, [8] for how
-- many milliseconds its channel remembers it, or '0'.
if ARGV[8] ~= '0' then
  redis.call('SET', P .. 'last:' .. ARGV[5] .. ':' .. ARGV[6], ARGV[7], 'PX', ARGV[8])
end
redis.call('XADD', P .. 'log', 'MAXLEN', '~', 1000, '*', 'r', ARGV[7])
publish(ARGV[5], ARGV[6], ARGV[7])
return 1
