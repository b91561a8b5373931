-- In front of every script. ARGV[1] the prefix of the partition's keys, ARGV[2] how to publish
-- ('SPUBLISH' where topics are sharded), ARGV[3] the node that the change is of, ARGV[4] its
-- session. KEYS[1] is the partition's registry of sessions; the other keys share its slot.
-- KEYS[2], where webhooks are sent, is the partition's stream of facts: f a line of JSON, as
-- src/webhooks/journal.rs reads it.
--
--   nodes            hash  node -> session
--   version          grows with every change
--   epoch            of the data in the partition: the session that found it empty
--   held:NODE        hash  APP:NAME -> connections of that node
--   in:NODE          hash  APP:NAME\0USER -> 1, a user with a connection from that node
--   channels:APP     hash  NAME -> connections
--   users:APP:NAME   hash  USER -> nodes that the user is on
--   info:APP:NAME    hash  USER -> '0', or '1' and the JSON object that was signed with it
--   log              stream of the newest records, for those whose subscription broke
--
-- Numbers above 10^14 must not be turned into text by Lua: it would round them.
local P, PUBLISH, NODE = ARGV[1], ARGV[2], ARGV[3]

-- A node that was declared dead, or whose change comes late over an old connection.
local function is_stale()
  return redis.call('HGET', KEYS[1], NODE) ~= ARGV[4]
end

local function next_version()
  return redis.call('INCR', P .. 'version')
end

local FACTS_MAX = 100000

local function add_fact(line)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', FACTS_MAX, '*', 'f', line)
end

-- What is stated was told to the application already: whoever tells it may have lost that.
local is_told = false

-- Tells the application of a change, in the step that makes it.
local function state(fact, app, name, user)
  if not KEYS[2] or string.sub(name, 1, 1) == '#' then return end
  local time = redis.call('TIME')
  local line = cjson.encode({
    serial = 0, fact = fact, app = app, channel = name, user_id = user, is_told = is_told,
    at_ms = time[1] * 1000 + math.floor(time[2] / 1000),
  })
  add_fact(line)
end

local function field(text)
  return struct.pack('<I4c0', #text, text)
end

-- The start of a record (record.rs). Its event has the id 0, VERSION.
local function head(kind, version, app, name, except)
  return struct.pack('<BBI4I8', 1, kind, 0, version) .. (except or '\0') .. field(app) .. field(name)
end

local function publish(app, name, record)
  redis.call(PUBLISH, P .. 't:' .. app .. ':' .. name, record)
  if PUBLISH == 'SPUBLISH' then
    redis.call(PUBLISH, P .. 'a:' .. app, record)
  end
end

-- Tells the watchers of a user who came or went; their channel is in the same partition.
local function tell_watchers(app, name, kind)
  local user = string.match(name, '^#signed%-in%-(.*)$')
  if user then
    local watchers = '#watchers-' .. user
    local record = head(kind, next_version(), app, watchers) .. field(user)
    redis.call('XADD', P .. 'log', 'MAXLEN', '~', 1000, '*', 'r', record)
    publish(app, watchers, record)
  end
end

local function add(key, name, delta)
  local now = redis.call('HINCRBY', key, name, delta)
  if now <= 0 then
    redis.call('HDEL', key, name)
  end
  return now
end

-- Adds to a channel's connections: how many there are now, and whether it came or went by that.
local function connect(app, name, delta)
  if delta == 0 then
    return tonumber(redis.call('HGET', P .. 'channels:' .. app, name) or 0), false, false
  end
  add(P .. 'held:' .. NODE, app .. ':' .. name, delta)
  local now = add(P .. 'channels:' .. app, name, delta)
  local came, went = delta > 0 and now == delta, delta < 0 and now <= 0
  if came then state('channel_occupied', app, name) end
  if went then state('channel_vacated', app, name) end
  return now, came, went
end

-- Adds to the nodes that a user is on. Tells the channel of a new or gone user, and whether it did.
local function enter(app, name, user, info, delta, except)
  local channel = app .. ':' .. name
  if delta == 0 then
    return false, false
  end
  add(P .. 'in:' .. NODE, channel .. '\0' .. user, delta)
  local now = add(P .. 'users:' .. channel, user, delta)
  local added, removed = delta > 0 and now == delta, delta < 0 and now <= 0
  if added then
    redis.call('HSET', P .. 'info:' .. channel, user, info)
  elseif removed then
    redis.call('HDEL', P .. 'info:' .. channel, user)
  end
  if added then state('member_added', app, name, user) end
  if removed then state('member_removed', app, name, user) end
  if added or removed then
    local users = redis.call('HLEN', P .. 'users:' .. channel)
    local version = next_version()
    local numbers = struct.pack('<I8I8', users, version)
    local record
    if added then
      record = head(2, version, app, name, except) .. numbers .. field(user) .. field(info)
    else
      record = head(3, version, app, name, except) .. numbers .. field(user)
    end
    publish(app, name, record)
  end
  return added, removed
end
