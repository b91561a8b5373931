-- Commands in one step, if the lease KEYS[1] says ARGV[1]: else nothing is done. ARGV[2…] are the
-- commands, each a count of words and then the words. Gives the answers.
-- The command `only-if` KEY NUMBER ends the step in peace where KEY holds another number.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('STALE the lease is not ours')
end
local answers = {}
local at = 2
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  local words = {}
  for nth = 1, count do words[nth] = ARGV[at + nth] end
  at = at + count + 1
  if words[1] == 'only-if' then
    if (redis.call('GET', words[2]) or '0') ~= words[3] then return answers end
  else
    answers[#answers + 1] = redis.call(unpack(words))
  end
end
return answers
