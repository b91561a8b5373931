-- One connection leaves. ARGV[5] app, [6] name, [7] the record's except part, [8] '1' if it
-- was the last one here of [9] user. Gives connections, version, ceased to be, member has gone.
if is_stale() then return { err = 'STALE' } end
local app, name = ARGV[5], ARGV[6]
local removed = false
if ARGV[8] == '1' then
  local _
  _, removed = enter(app, name, ARGV[9], '', -1, ARGV[7])
end
local now, _, went = connect(app, name, -1)
if went then tell_watchers(app, name, 6) end
return { now, next_version(), went and 1 or 0, removed and 1 or 0 }
