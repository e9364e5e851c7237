"""What must happen in Redis at once or not at all, in Lua.

Every script gets the prefix of its fingerprint as its key and the id of a document as its first argument, and works out
the other names: one Redis, with replicas of its own or not, but no Redis Cluster.
"""

from __future__ import annotations

__all__ = ["ADD", "COMMIT", "DELETE", "DROP", "EXTEND", "MARK", "READY", "RELEASE", "TAKE", "TOUCH"]

_NAMES = """
local prefix, id = KEYS[1], ARGV[1]
local doc = prefix .. ':doc:' .. id
local text, adapter, lease, progress = doc .. ':text', doc .. ':adapter', doc .. ':lease', doc .. ':progress'

local function tell(event)
  redis.call('PUBLISH', prefix .. ':news', event .. ' ' .. id)
end

-- What the names of an owner's lists begin with.
local function owned(owner)
  return prefix .. ':owner:' .. owner
end

-- Owner of the document, which is there.
local function owner_of()
  return cjson.decode(redis.call('HGET', doc, 'owner') or '""')
end

local function leave_lists(owner)
  for _, status in ipairs({'queued', 'ready', 'failed'}) do
    redis.call('ZREM', prefix .. ':' .. status, id)
    redis.call('ZREM', owned(owner) .. ':' .. status, id)
  end
end

local function set_status(status)
  local owner, created_at = owner_of(), redis.call('HGET', doc, 'created_at')
  leave_lists(owner)
  redis.call('ZADD', prefix .. ':' .. status, created_at, id)
  redis.call('ZADD', owned(owner) .. ':' .. status, created_at, id)
  redis.call('HSET', doc, 'status', '"' .. status .. '"')
end

-- Whether whoever holds `token` may write the outcome of an encode. A lease that has ended, and that no one has taken
-- over, does no harm as long as the document is still queued.
local function may_write(token)
  local status, holder = redis.call('HGET', doc, 'status'), redis.call('GET', lease)
  return status == '"queued"' and (not holder or holder == token)
end
"""

# id, text, token or '', milliseconds, field, value, …: 1 where the document is new, 2 where it had failed and is queued
# again; with a token, the document is leased to it before anyone hears of it.
ADD = (
    _NAMES
    + """
local status = redis.call('HGET', doc, 'status')
if status and status ~= '"failed"' then return 0 end
redis.call('SET', text, ARGV[2])
if status then
  redis.call('HSET', doc, 'error', 'null')
else
  for field = 5, #ARGV, 2 do redis.call('HSET', doc, ARGV[field], ARGV[field + 1]) end
  redis.call('ZADD', owned(owner_of()) .. ':documents', redis.call('HGET', doc, 'created_at'), id)
end
set_status('queued')
if ARGV[3] ~= '' then redis.call('SET', lease, ARGV[3], 'NX', 'PX', ARGV[4]) end
tell('queued')
return status and 2 or 1
"""
)

# id, token, staged key, milliseconds to live: 1 where the staged adapter is the document's now.
COMMIT = (
    _NAMES
    + """
if not may_write(ARGV[2]) then
  redis.call('UNLINK', ARGV[3])
  return 0
end
redis.call('RENAME', ARGV[3], adapter)
redis.call('PEXPIRE', adapter, ARGV[4])
return 1
"""
)

# id, token, field, value, …: 1 where the document is ready now.
READY = (
    _NAMES
    + """
if not may_write(ARGV[2]) then return 0 end
for field = 3, #ARGV, 2 do redis.call('HSET', doc, ARGV[field], ARGV[field + 1]) end
redis.call('HSET', doc, 'error', 'null')
set_status('ready')
tell('ended')
return 1
"""
)

# id, status, token or '', field, value, …: 1 where it was written.
MARK = (
    _NAMES
    + """
local status = redis.call('HGET', doc, 'status')
if not status then return 0 end
-- Another replica may have encoded it since we looked in vain.
if ARGV[2] == 'queued' and redis.call('EXISTS', adapter) == 1 then return 0 end
if ARGV[2] == 'failed' and not may_write(ARGV[3]) then return 0 end
for field = 4, #ARGV, 2 do redis.call('HSET', doc, ARGV[field], ARGV[field + 1]) end
set_status(ARGV[2])
tell(ARGV[2] == 'queued' and 'queued' or 'ended')
return 1
"""
)

# id, moment (JSON), milliseconds to live.
TOUCH = (
    _NAMES
    + """
local kept = tonumber(redis.call('HGET', doc, 'expires_at') or '')
if redis.call('HGET', doc, 'status') ~= '"ready"' or not kept or kept >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', doc, 'expires_at', ARGV[2])
return redis.call('PEXPIRE', adapter, ARGV[3])
"""
)

# id, checksum or '': forget an adapter, but not another one that has taken its place meanwhile.
DROP = (
    _NAMES
    + """
if ARGV[2] ~= '' and redis.call('HGET', adapter, 'sha256') ~= ARGV[2] then return 0 end
return redis.call('UNLINK', adapter)
"""
)

# id, owner: 1 where the owner had it. Whose a damaged record is no one can tell any more: the id is hard to guess.
DELETE = (
    _NAMES
    + """
local known = redis.call('EXISTS', doc)
local kept = redis.pcall('HGET', doc, 'owner')
local is_read, owner = pcall(cjson.decode, type(kept) == 'string' and kept or '')
if is_read and owner ~= ARGV[2] then return 0 end
redis.call('UNLINK', doc, text, adapter, lease, progress)
redis.call('ZREM', owned(ARGV[2]) .. ':documents', id)
leave_lists(ARGV[2])
if known == 1 then tell('deleted') end
return known
"""
)

# id, token, milliseconds: 1 taken (or held), 0 held by another, -1 nothing to encode.
TAKE = (
    _NAMES
    + """
if redis.call('HGET', doc, 'status') ~= '"queued"' then return -1 end
if redis.call('SET', lease, ARGV[2], 'NX', 'PX', ARGV[3]) then return 1 end
return redis.call('GET', lease) == ARGV[2] and 1 or 0
"""
)

# id, token, milliseconds, progress or '': 1 still held (or held again, as no one else has it), 0 lost.
EXTEND = (
    _NAMES
    + """
if not may_write(ARGV[2]) then return 0 end
redis.call('SET', lease, ARGV[2], 'PX', ARGV[3])
if ARGV[4] ~= '' then
  redis.call('SET', progress, ARGV[4], 'PX', ARGV[3])
  tell('progress')
end
return 1
"""
)

# id, token.
RELEASE = (
    _NAMES
    + """
if redis.call('GET', lease) ~= ARGV[2] then return 0 end
redis.call('UNLINK', lease, progress)
tell('free')
return 1
"""
)
