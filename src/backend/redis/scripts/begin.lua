-- A node begins a session in the partition; what it still sends in an older one is refused.
-- ARGV[5] the newest version it knows of. Gives whether it had a session, the epoch of the
-- partition's data (another one if Redis lost them), and what Redis holds of the node: two flat
-- hashes.
local known = redis.call('HGET', KEYS[1], NODE)
if known and tonumber(known) >= tonumber(ARGV[4]) then return { err = 'STALE' } end
local version = redis.call('GET', P .. 'version')
if tonumber(version or 0) < tonumber(ARGV[5]) then
  redis.call('SET', P .. 'version', ARGV[5])
end
redis.call('SET', P .. 'epoch', ARGV[4], 'NX')
redis.call('HSET', KEYS[1], NODE, ARGV[4])
return {
  known and 1 or 0,
  redis.call('GET', P .. 'epoch'),
  redis.call('HGETALL', P .. 'held:' .. NODE),
  redis.call('HGETALL', P .. 'in:' .. NODE),
}
