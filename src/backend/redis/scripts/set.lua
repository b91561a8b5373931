-- What a node holds of a channel, all told, whatever Redis thought. ARGV[5] app, [6] name,
-- [7] connections, [8] '1' if the channel is known to the application already; then for each
-- user: user, info, '1' if on this node, '1' if known. Gives the facts: kind, user, …
if is_stale() then return { err = 'STALE' } end
local app, name = ARGV[5], ARGV[6]
local channel = app .. ':' .. name
local facts = {}
local function note(kind, user)
  facts[#facts + 1] = kind
  facts[#facts + 1] = user
end
local had = tonumber(redis.call('HGET', P .. 'held:' .. NODE, channel) or 0)
local delta = tonumber(ARGV[7]) - had
is_told = ARGV[8] == '1' and delta > 0
local _, came, went = connect(app, name, delta)
if came and ARGV[8] == '0' then
  tell_watchers(app, name, 5)
  note('occupied', '')
end
for at = 9, #ARGV, 4 do
  local user = ARGV[at]
  local was = tonumber(redis.call('HGET', P .. 'in:' .. NODE, channel .. '\0' .. user) or 0)
  delta = tonumber(ARGV[at + 2]) - was
  is_told = ARGV[at + 3] == '1' and delta > 0
  local added, removed = enter(app, name, user, ARGV[at + 1], delta)
  if added and ARGV[at + 3] == '0' then note('added', user) end
  if removed then note('removed', user) end
end
if went then
  tell_watchers(app, name, 6)
  note('vacated', '')
end
return facts
