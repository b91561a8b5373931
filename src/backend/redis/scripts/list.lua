-- ARGV[5] app, [6] what names start with. Gives name, connections, users, …
local app, start = ARGV[5], ARGV[6]
local channels = redis.call('HGETALL', P .. 'channels:' .. app)
local found = {}
for at = 1, #channels, 2 do
  local name = channels[at]
  if string.sub(name, 1, #start) == start then
    local users = 0
    if string.sub(name, 1, 9) == 'presence-' then
      users = redis.call('HLEN', P .. 'users:' .. app .. ':' .. name)
    end
    found[#found + 1] = name
    found[#found + 1] = tonumber(channels[at + 1])
    found[#found + 1] = users
  end
end
return found
