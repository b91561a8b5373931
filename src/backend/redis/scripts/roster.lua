-- ARGV[5] app, [6] name. Gives the version and the roster as user, info, …
return {
  tonumber(redis.call('GET', P .. 'version') or 0),
  redis.call('HGETALL', P .. 'info:' .. ARGV[5] .. ':' .. ARGV[6]),
}
