-- What the scripts share: scripts.py puts it before each, and replaces the prefixes RQ: and OUR: of keys.
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local INTERACTIVE, BATCH, QUARANTINE = 'RQ:queue:interactive', 'RQ:queue:batch', 'RQ:queue:quarantine'

local function add_event(id, event, data)
  local entry = redis.call('XADD', 'OUR:events:' .. id, 'MAXLEN', '~', 256, '*', 'event', event,
                           'data', data or '')
  redis.call('PUBLISH', 'OUR:job_events', id .. ' ' .. event)
  return entry
end

-- previews are large, and of no use once there is a newer one or the job has ended
local function remove_preview(id)
  local entry = redis.call('HGET', 'RQ:job:' .. id, 'preview_at')
  if entry then
    redis.call('XDEL', 'OUR:events:' .. id, entry)
    redis.call('HDEL', 'RQ:job:' .. id, 'preview_at')
  end
end

local function wake_up_worker()
  redis.call('RPUSH', 'OUR:wake_up', 1)
  redis.call('LTRIM', 'OUR:wake_up', -16, -1)
end

local function count(...)
  redis.call('HINCRBY', 'OUR:totals', table.concat({...}, '|'), 1)
end

local function observe_wait(priority, seconds)
  local bucket = 'inf'
  for _, bound in ipairs({WAIT_BOUNDS}) do
    if seconds <= tonumber(bound) then
      bucket = bound
      break
    end
  end
  count('queue_wait_seconds', priority, bucket)
  redis.call('HINCRBYFLOAT', 'OUR:totals', 'queue_wait_seconds|' .. priority .. '|sum', seconds)
end

-- no worker runs the job any more
local function end_lease(id)
  local job = redis.call('HMGET', 'RQ:job:' .. id, 'origin', 'execution')
  redis.call('ZREM', 'OUR:leases', id)
  redis.call('ZREM', 'RQ:wip:' .. job[1], id .. ':' .. (job[2] or ''))
  remove_preview(id)
end

-- the worker that runs the job hears that it has lost it
local function revoke(id)
  local job = redis.call('HMGET', 'RQ:job:' .. id, 'worker_name', 'execution')
  local revoked = 'OUR:revoked:' .. job[1]
  redis.call('RPUSH', revoked, id .. ':' .. job[2])
  redis.call('EXPIRE', revoked, 60)
end

-- a started job waits again; push: LPUSH or RPUSH
local function requeue(id, push, queue)
  local key = 'RQ:job:' .. id
  end_lease(id)
  redis.call('HSET', key, 'status', 'queued', 'execution', '', 'worker_name', '')
  redis.call('HDEL', key, 'step', 'total')
  redis.call(push, queue, id)
  add_event(id, 'queued')
  wake_up_worker()
end

local function leave_queue(id, origin)
  redis.call('LREM', 'RQ:queue:' .. origin, 0, id)
  redis.call('LREM', QUARANTINE, 0, id)
end

-- the one way in which a job ends
local function finish(id, status, event, ended_at, registry, ...)
  end_lease(id)
  local key = 'RQ:job:' .. id
  local job = redis.call('HMGET', key, 'origin', 'operation', 'result_ttl', 'blobs')
  local ttl_s = job[3] or 3600 -- a job that RQ's own client enqueued may lack it
  local data = '["' .. (job[2] or '') .. '",null,[],{}]'
  redis.call('HSET', key, 'status', status, 'ended_at', ended_at, 'data', data, ...)
  redis.call('EXPIRE', key, ttl_s)
  redis.call('ZADD', 'RQ:' .. registry .. ':' .. job[1], now + ttl_s, id)
  redis.call('ZREM', 'OUR:deadlines', id)
  for blob in string.gmatch(job[4] or '', '%S+') do
    redis.call('SREM', 'OUR:blob:' .. blob, id)
  end
  count('jobs_ended', job[2] or '', event == 'failed' and select(2, ...) or event)
  add_event(id, event)
  redis.call('EXPIRE', 'OUR:events:' .. id, ttl_s)
end

local function fail(id, ended_at, code, message)
  finish(id, 'failed', 'failed', ended_at, 'failed', 'error_code', code, 'error_message', message)
end

local function fail_overdue(id, ended_at)
  fail(id, ended_at, 'deadline_exceeded', 'The job was not done within its deadline_s.')
end
