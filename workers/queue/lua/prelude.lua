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

-- a worker that waits for jobs of this one's pipeline looks for work
local function wake_up_worker(id)
  local list = 'OUR:wake_up:' .. (redis.call('HGET', 'RQ:job:' .. id, 'pipeline') or '')
  redis.call('RPUSH', list, 1)
  redis.call('LTRIM', list, -16, -1)
end

-- whether there are living workers, and none of them has the pipeline
local function is_unserved(pipeline)
  local has_workers = false
  for _, worker in ipairs(redis.call('SMEMBERS', 'RQ:workers')) do
    local known = redis.call('HMGET', worker, 'phase', 'pipelines')
    if known[1] then
      -- one that doesn't say which it has is older than this field
      if not known[2] or string.find('\n' .. known[2] .. '\n', '\n' .. pipeline .. '\n', 1, true) then
        return false
      end
      has_workers = true
    end
  end
  return has_workers
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
  wait_again(id, unpack(redis.call('HMGET', key, 'origin', 'owner')))
  add_event(id, 'queued')
  wake_up_worker(id)
end

local function leave_queue(id, origin)
  redis.call('LREM', 'RQ:queue:' .. origin, 0, id)
  redis.call('LREM', QUARANTINE, 0, id)
  stop_waiting(id, origin, redis.call('HGET', 'RQ:job:' .. id, 'owner'))
end

-- of a job that has failed, a request up to this size is kept, so that it can be tried again
local MAX_KEPT_REQUEST_BYTES = 8192

-- what is kept of a job that has ended: otherwise no request, and short values, as one of more than 64 bytes
-- would make the hash four times as large
local KEPT = {'data', 'status', 'origin', 'owner', 'operation', 'created_at', 'started_at', 'ended_at', 'result_ttl',
              'tries', 'step', 'total', 'execution', 'error_code', 'error_message', 'queue_s', 'total_s',
              'batch_size', 'webhook'}

-- an end is told to an address that a client named: kept until it has been, or for as long as that is worth it
local WEBHOOK_TTL_S = 7 * 86400

-- Those of a host are in one set, and hosts in another, each by when the first is due: so none holds up others.
-- at: nil when it is not to be sent any more
local function schedule_webhook(host, id, at)
  local webhooks = 'OUR:webhooks:' .. host
  if at then redis.call('ZADD', webhooks, at, id) else redis.call('ZREM', webhooks, id) end
  local first = redis.call('ZRANGE', webhooks, 0, 0, 'WITHSCORES')
  if first[1] then
    redis.call('ZADD', 'OUR:webhook_hosts', first[2], host)
  else
    redis.call('ZREM', 'OUR:webhook_hosts', host)
  end
end

local function enqueue_webhook(id, url, told_in, ...)
  local key = 'OUR:webhook:' .. id
  local host = string.lower(string.match(url, '^%w+://([^/?#]+)'))
  redis.call('HSET', key, ...)
  redis.call('HSET', key, 'url', url, 'host', host, 'attempts', 0, 'told_in', told_in)
  redis.call('EXPIRE', key, WEBHOOK_TTL_S)
  schedule_webhook(host, id, now)
end

-- the one way in which a job ends
local function finish(id, status, event, ended_at, registry, ...)
  end_lease(id)
  local key = 'RQ:job:' .. id
  local job = redis.call('HMGET', key, 'origin', 'operation', 'result_ttl', 'blobs', 'version',
                         'idempotency_key', 'status', 'submitted_at', 'claimed_at',
                         'webhook_url')
  local ttl_s = job[3] or 3600 -- a job that RQ's own client enqueued may lack it
  local can_retry = status == 'failed' and redis.call('HSTRLEN', key, 'data') <= MAX_KEPT_REQUEST_BYTES
  if not can_retry then redis.call('HSET', key, 'data', '["' .. (job[2] or '') .. '",null,[],{}]') end
  redis.call('HSET', key, 'status', status, 'ended_at', ended_at, ...)
  if job[8] then -- one that RQ's own client enqueued lacks it
    local waited_until = job[7] == 'started' and tonumber(job[9]) or now
    redis.call('HSET', key, 'queue_s', string.format('%.3f', waited_until - job[8]),
               'total_s', string.format('%.3f', now - job[8]))
  end
  redis.call('ZADD', 'RQ:' .. registry .. ':' .. job[1], now + ttl_s, id)
  redis.call('ZREM', 'OUR:deadlines', id)
  for blob in string.gmatch(job[4] or '', '%S+') do
    redis.call('SREM', 'OUR:blob:' .. blob, id)
    if can_retry then redis.call('SET', 'OUR:kept_blob:' .. blob, 1, 'EX', ttl_s) end
  end
  count('jobs_ended', job[2] or '', event == 'failed' and select(2, ...) or event)
  local entry = add_event(id, event)
  if job[5] then
    local kept = {'last_event', entry}
    for i, value in ipairs(redis.call('HMGET', key, unpack(KEPT))) do
      if value then
        table.insert(kept, KEPT[i])
        table.insert(kept, value)
      end
    end
    redis.call('DEL', key, 'OUR:events:' .. id)
    redis.call('HSET', key, unpack(kept))
    if job[10] then enqueue_webhook(id, job[10], key, unpack(kept)) end
  else -- an older front end, which looks for the end of its jobs in their events
    redis.call('EXPIRE', 'OUR:events:' .. id, ttl_s)
  end
  redis.call('EXPIRE', key, ttl_s)
  if job[6] then redis.call('EXPIRE', job[6], ttl_s) end
end

local function fail(id, ended_at, code, message)
  finish(id, 'failed', 'failed', ended_at, 'failed', 'error_code', code, 'error_message', message)
end

local function fail_overdue(id, ended_at)
  fail(id, ended_at, 'deadline_exceeded', 'The job was not done within its deadline_s.')
end
