-- Takes out what a dead node held, ARGV[5] entries at most; ARGV[6] is '1' to declare it dead.
-- Gives whether nothing is left, then the facts: kind, app, name, user, …
local registered = redis.call('HEXISTS', KEYS[1], NODE) == 1
if registered then
  if ARGV[6] ~= '1' then return { 1 } end
  redis.call('HDEL', KEYS[1], NODE)
end
local answer = { 0 }
local function note(...)
  for _, part in ipairs({ ... }) do answer[#answer + 1] = part end
end
local budget = tonumber(ARGV[5])
local function some_of(key)
  return redis.call('HSCAN', key, 0, 'COUNT', budget)[2]
end
local members = some_of(P .. 'in:' .. NODE)
for at = 1, #members, 2 do
  if budget == 0 then return answer end
  budget = budget - 1
  local app, name, user = string.match(members[at], '^(.*):([^:%z]*)%z(.*)$')
  local _, removed = enter(app, name, user, '', -tonumber(members[at + 1]))
  if removed then note('removed', app, name, user) end
end
if #members > 0 then return answer end
local channels = some_of(P .. 'held:' .. NODE)
for at = 1, #channels, 2 do
  if budget == 0 then return answer end
  budget = budget - 1
  local app, name = string.match(channels[at], '^(.*):([^:]*)$')
  local _, _, went = connect(app, name, -tonumber(channels[at + 1]))
  if went then
    tell_watchers(app, name, 6)
    note('vacated', app, name, '')
  end
end
if #channels == 0 then answer[1] = 1 end
return answer
