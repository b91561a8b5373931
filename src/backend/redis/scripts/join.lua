-- One connection joins. ARGV[5] app, [6] name, [7] the record's except part, [8] members at most,
-- [9] '1' for a presence channel, [10] user, [11] info.
-- Gives connections, version, came into being, is a new member, then the roster as user, info, …
if is_stale() then return { err = 'STALE' } end
local app, name = ARGV[5], ARGV[6]
local channel = app .. ':' .. name
local is_presence = ARGV[9] == '1'
if is_presence and redis.call('HEXISTS', P .. 'users:' .. channel, ARGV[10]) == 0
  and redis.call('HLEN', P .. 'users:' .. channel) >= tonumber(ARGV[8]) then
  return { err = 'FULL' }
end
local now, came = connect(app, name, 1)
local added = false
if is_presence then
  local is_here = redis.call('HEXISTS', P .. 'in:' .. NODE, channel .. '\0' .. ARGV[10])
  added = enter(app, name, ARGV[10], ARGV[11], 1 - is_here, ARGV[7])
end
if came then tell_watchers(app, name, 5) end
local answer = { now, next_version(), came and 1 or 0, added and 1 or 0 }
if is_presence then
  answer[5] = redis.call('HGETALL', P .. 'info:' .. channel)
end
return answer
