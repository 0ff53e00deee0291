"""Every change of a job in Redis, each a Lua script. Differences from RQ's own worker, and why:

- A script is atomic, so no death of a process, at any moment, leaves a job in nobody's hands or with two
  results. RQ pops a job and registers it in two steps, and repairs what falls between.
- A claim has a number (``execution``) and a lease. Who no longer holds the number can't change the job.
- Leases are kept in a sorted set of ours; RQ's ``wip`` entries never expire, because RQ's own clean-up,
  which any reader of RQ's registries triggers, takes no lock and would run a job twice.
- Times that are compared come from the server's clock; the machines' clocks may differ.
"""

from rq.defaults import RQ_KEY_PREFIX

from workers.metrics import WAIT_SECONDS
from workers.protocol import PREFIX

_PRELUDE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local INTERACTIVE, BATCH, ALONE = 'RQ:queue:interactive', 'RQ:queue:batch', 'RQ:queue:alone'

local function tell(id, event, data)
  local at = redis.call('XADD', 'OUR:events:' .. id, 'MAXLEN', '~', 256, '*', 'event', event,
                        'data', data or '')
  redis.call('PUBLISH', 'OUR:news', id .. ' ' .. event)
  return at
end

-- previews are large, and of no use once there is a newer one or the job has ended
local function forget_preview(id)
  local at = redis.call('HGET', 'RQ:job:' .. id, 'preview_at')
  if at then
    redis.call('XDEL', 'OUR:events:' .. id, at)
    redis.call('HDEL', 'RQ:job:' .. id, 'preview_at')
  end
end

local function ring()
  redis.call('RPUSH', 'OUR:bell', 1)
  redis.call('LTRIM', 'OUR:bell', -16, -1)
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

-- nobody runs the job any more
local function let_go(id)
  local job = redis.call('HMGET', 'RQ:job:' .. id, 'origin', 'execution')
  redis.call('ZREM', 'OUR:leases', id)
  redis.call('ZREM', 'RQ:wip:' .. job[1], id .. ':' .. (job[2] or ''))
  forget_preview(id)
end

-- the one way in which a job ends
local function finish(id, status, event, ended_at, registry, ...)
  let_go(id)
  local key = 'RQ:job:' .. id
  local job = redis.call('HMGET', key, 'origin', 'operation', 'result_ttl')
  local ttl_s = job[3] or 3600 -- a job that was not ours from the start may lack it
  local data = '["' .. (job[2] or '') .. '",null,[],{}]'
  redis.call('HSET', key, 'status', status, 'ended_at', ended_at, 'data', data, ...)
  redis.call('EXPIRE', key, ttl_s)
  redis.call('ZADD', 'RQ:' .. registry .. ':' .. job[1], now + ttl_s, id)
  redis.call('ZREM', 'OUR:deadlines', id)
  count('jobs_ended', job[2] or '', event == 'failed' and select(2, ...) or event)
  tell(id, event)
  redis.call('EXPIRE', 'OUR:events:' .. id, ttl_s)
end

local function fail(id, ended_at, code, message)
  finish(id, 'failed', 'failed', ended_at, 'failed', 'error_code', code, 'error_message', message)
end

local function overdue(id, ended_at)
  fail(id, ended_at, 'deadline_exceeded', 'The job was not done within its deadline_s.')
end

local function leave_queue(id, origin)
  redis.call('LREM', 'RQ:queue:' .. origin, 0, id)
  redis.call('LREM', ALONE, 0, id)
end

-- the worker that runs the job hears that it is no longer its own
local function dismiss(id)
  local job = redis.call('HMGET', 'RQ:job:' .. id, 'worker_name', 'execution')
  local control = 'OUR:control:' .. job[1]
  redis.call('RPUSH', control, id .. ':' .. job[2])
  redis.call('EXPIRE', control, 60)
end
"""


def _script(body: str) -> str:
    bounds = ",".join(f"'{bound}'" for bound in WAIT_SECONDS.buckets)
    script = (_PRELUDE + body).replace("WAIT_BOUNDS", bounds)
    return script.replace("RQ:", f"{RQ_KEY_PREFIX}:").replace("OUR:", f"{PREFIX}:")


# id, queue, max_length, deadline_s or '', then fields and values → {accepted, jobs waiting before it}
SUBMIT = _script("""
local id, queue, max_length, deadline_s = ARGV[1], 'RQ:queue:' .. ARGV[2], ARGV[3], ARGV[4]
local key = 'RQ:job:' .. id
local waiting = redis.call('LLEN', INTERACTIVE) + redis.call('LLEN', BATCH) + redis.call('LLEN', ALONE)
if redis.call('EXISTS', key) == 1 then return {1, waiting} end -- sent again after a lost answer
if waiting >= tonumber(max_length) then return {0, waiting} end
redis.call('HSET', key, 'submitted_at', now, unpack(ARGV, 5))
if deadline_s ~= '' then
  redis.call('HSET', key, 'deadline_at', now + deadline_s)
  redis.call('ZADD', 'OUR:deadlines', now + deadline_s, id)
end
redis.call('SADD', 'RQ:queues', queue)
redis.call('RPUSH', queue, id)
count('jobs_submitted', redis.call('HGET', key, 'operation') or '', ARGV[2])
tell(id, 'queued')
ring()
return {1, waiting}
""")

TOGETHER, BY_ITSELF, DRAIN_FIRST = 0, 1, 2

# worker, free slots, '1' if nothing runs there, lease_s, time, ageing_s
# → {server's clock, TOGETHER | BY_ITSELF | DRAIN_FIRST, id, hash, id, hash, ...}
CLAIM = _script("""
local worker, slots, is_idle, lease_s = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local started_at, ageing_s = ARGV[5], tonumber(ARGV[6])
local answer = {string.format('%.6f', now), 0}

local function claim(queue)
  while true do
    local id = redis.call('LPOP', queue)
    if not id then return nil end
    local key = 'RQ:job:' .. id
    local job = redis.call('HMGET', key, 'status', 'deadline_at', 'origin', 'slots', 'operation',
                           'submitted_at')
    if job[1] == 'queued' then
      if job[2] and tonumber(job[2]) <= now then
        overdue(id, started_at)
      else
        local execution = redis.call('INCR', 'OUR:executions')
        count('tries', job[5] or '')
        if redis.call('HINCRBY', key, 'tries', 1) == 1 and job[6] then
          observe_wait(job[3], now - job[6])
        end
        redis.call('HDEL', key, 'step', 'total')
        redis.call('HSET', key, 'status', 'started', 'started_at', started_at, 'worker_name', worker,
                   'execution', execution, 'claimed_at', now)
        redis.call('ZADD', 'OUR:leases', now + lease_s, id)
        redis.call('ZADD', 'RQ:wip:' .. job[3], '+inf', id .. ':' .. execution)
        tell(id, 'running')
        table.insert(answer, id)
        table.insert(answer, redis.call('HGETALL', key))
        return tonumber(job[4]) or 1
      end
    end
  end
end

-- A job whose worker died may be what killed it: one worker lets its batch end and runs it alone. Others have
-- their turn in between.
local num_waiting = redis.call('LLEN', INTERACTIVE) + redis.call('LLEN', BATCH)
if redis.call('LLEN', ALONE) > 0 then
  if not is_idle then
    local drains = redis.call('GET', 'OUR:drains')
    if not drains or redis.call('EXISTS', 'RQ:worker:' .. drains) == 0 then drains = worker end
    redis.call('SET', 'OUR:drains', drains, 'EX', 60)
    if drains == worker then
      answer[2] = 2
      return answer
    end
  elseif num_waiting == 0 or redis.call('INCR', 'OUR:alone_turn') % 2 == 1 then
    if claim(ALONE) then
      redis.call('DEL', 'OUR:drains')
      answer[2] = 1
      return answer
    end
  end
end

-- Workers that have nothing to do share what waits, and a busy one leaves it to them.
redis.call('ZREM', 'OUR:idle', worker)
redis.call('ZREMRANGEBYSCORE', 'OUR:idle', '-inf', now - 2)
local num_idle = redis.call('ZCARD', 'OUR:idle')
local share = num_waiting
if num_idle > 0 and num_waiting > 0 then
  if not is_idle then
    redis.call('ZPOPMIN', 'OUR:idle') -- asked once: it may be dead
    ring()
    return answer
  end
  share = math.ceil(num_waiting / (num_idle + 1))
end

-- Interactive jobs first; but once a batch job has waited for ageing_s, every fourth claim is a batch job.
while slots > 0 and share > 0 do
  local oldest = redis.call('LINDEX', BATCH, 0)
  local since = oldest and tonumber(redis.call('HGET', 'RQ:job:' .. oldest, 'submitted_at'))
  local taken
  if since and now - since > ageing_s and redis.call('INCR', 'OUR:turn') % 4 == 0 then
    taken = claim(BATCH) or claim(INTERACTIVE)
  else
    taken = claim(INTERACTIVE) or claim(BATCH)
  end
  if not taken then break end
  slots, share = slots - taken, share - 1
end
if is_idle and #answer == 2 then redis.call('ZADD', 'OUR:idle', now, worker) end
return answer
""")

# id, execution, status, time, then return value | error code, error message → 1, or 0 if not the caller's
FINISH = _script("""
local id, execution, status, ended_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local job = redis.call('HMGET', 'RQ:job:' .. id, 'status', 'execution', 'result_ttl', 'worker_name',
                       'claimed_at')
if job[2] ~= execution then return 0 end
if job[1] ~= 'started' then return job[1] == status and 1 or 0 end -- sent again after a lost answer
if status == 'finished' then
  -- The pace of the service while it works: seconds between ends of jobs, the last hundred weighing most.
  local pace = redis.call('HMGET', 'OUR:pace', 'ended_at', 'seconds', 'jobs')
  local seconds = now - math.max(tonumber(pace[1] or 0), tonumber(job[5]))
  redis.call('HSET', 'OUR:pace', 'ended_at', now, 'seconds', (pace[2] or 0) * 0.99 + seconds,
             'jobs', (pace[3] or 0) * 0.99 + 1)
  redis.call('XADD', 'RQ:results:' .. id, '*', 'type', 1, 'worker_name', job[4], 'execution_id', execution,
             'return_value', ARGV[5])
  redis.call('EXPIRE', 'RQ:results:' .. id, job[3])
  finish(id, 'finished', 'succeeded', ended_at, 'finished')
else
  fail(id, ended_at, ARGV[5], ARGV[6])
end
return 1
""")

# id, execution, 'back' (untried, to the front of its queue) or 'alone', max_tries, time
# → 1, or 0 if not the caller's
RELEASE = _script("""
local id, execution, how, max_tries, ended_at = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local key = 'RQ:job:' .. id
local job = redis.call('HMGET', key, 'status', 'execution', 'origin', 'tries')
if job[1] ~= 'started' or job[2] ~= execution then return 0 end
if how == 'alone' and tonumber(job[4]) >= max_tries then
  fail(id, ended_at, 'internal_error', 'The job could not be computed.')
  return 1
end
let_go(id)
redis.call('HSET', key, 'status', 'queued', 'execution', '', 'worker_name', '')
redis.call('HDEL', key, 'step', 'total')
if how == 'back' then
  redis.call('HINCRBY', key, 'tries', -1)
  redis.call('LPUSH', 'RQ:queue:' .. job[3], id)
else
  redis.call('RPUSH', ALONE, id)
end
tell(id, 'queued')
ring()
return 1
""")

# lease_s, then id, execution, ... → the ids that are no longer the caller's
BEAT = _script("""
local lost = {}
for i = 2, #ARGV, 2 do
  local job = redis.call('HMGET', 'RQ:job:' .. ARGV[i], 'status', 'execution')
  if job[1] == 'started' and job[2] == ARGV[i + 1] then
    redis.call('ZADD', 'OUR:leases', now + ARGV[1], ARGV[i])
  else
    table.insert(lost, ARGV[i])
  end
end
return lost
""")

# time → the ids of jobs that were ended because their deadline has passed
END_OVERDUE = _script("""
local ended_at = ARGV[1]
local ended = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'OUR:deadlines', '-inf', now, 'LIMIT', 0, 100)) do
  local job = redis.call('HMGET', 'RQ:job:' .. id, 'status', 'origin')
  if job[1] == 'started' then dismiss(id) end
  if job[1] == 'queued' then leave_queue(id, job[2]) end
  if job[1] == 'started' or job[1] == 'queued' then overdue(id, ended_at) end
  redis.call('ZREM', 'OUR:deadlines', id)
  table.insert(ended, id)
end
return ended
""")

# lease_s, max_tries, time → {id, 'tried again' | 'lost', ...}
REAP = _script("""
local lease_s, max_tries, ended_at = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local ended = {}
-- When nobody has watched for a lease (the server was away, the machine asleep), no worker could say that it
-- lives: they get time to do so first.
local watched_at = tonumber(redis.call('GET', 'OUR:watched_at'))
redis.call('SET', 'OUR:watched_at', now)
if not watched_at or now - watched_at > lease_s then
  redis.call('SET', 'OUR:truce', 1, 'PX', math.floor(500 * lease_s + 500))
end
if redis.call('EXISTS', 'OUR:truce') == 0 then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'OUR:leases', '-inf', now, 'LIMIT', 0, 100)) do
    local key = 'RQ:job:' .. id
    local job = redis.call('HMGET', key, 'status', 'tries')
    if job[1] ~= 'started' then
      redis.call('ZREM', 'OUR:leases', id)
    else
      dismiss(id)
      table.insert(ended, id)
      if tonumber(job[2]) >= max_tries then
        fail(id, ended_at, 'worker_lost', 'The workers that ran it died, ' .. job[2] .. ' times.')
        redis.call('HSET', key, 'execution', '')
        table.insert(ended, 'lost')
      else
        let_go(id)
        redis.call('HSET', key, 'status', 'queued', 'execution', '')
        redis.call('HDEL', key, 'step', 'total')
        redis.call('RPUSH', ALONE, id)
        tell(id, 'queued')
        ring()
        table.insert(ended, 'tried again')
      end
    end
  end
end
for _, queue in ipairs({'interactive', 'batch'}) do
  for _, registry in ipairs({'finished', 'failed', 'canceled'}) do
    redis.call('ZREMRANGEBYSCORE', 'RQ:' .. registry .. ':' .. queue, '-inf', now)
  end
end
return ended
""")

# id, time → 1 if there is such a job
CANCEL = _script("""
local id, ended_at = ARGV[1], ARGV[2]
local job = redis.call('HMGET', 'RQ:job:' .. id, 'status', 'origin')
if not job[1] then return 0 end
if job[1] == 'started' then dismiss(id) end
if job[1] == 'queued' then leave_queue(id, job[2]) end
if job[1] == 'started' or job[1] == 'queued' then
  finish(id, 'canceled', 'cancelled', ended_at, 'canceled', 'execution', '')
end
return 1
""")

# id, execution, step, total, ... : told only for jobs that are still the caller's
PROGRESS = _script("""
for i = 1, #ARGV, 4 do
  local key = 'RQ:job:' .. ARGV[i]
  local job = redis.call('HMGET', key, 'status', 'execution')
  if job[1] == 'started' and job[2] == ARGV[i + 1] then
    redis.call('HSET', key, 'step', ARGV[i + 2], 'total', ARGV[i + 3])
    tell(ARGV[i], 'progress', ARGV[i + 2] .. ' ' .. ARGV[i + 3])
  end
end
""")

# id, execution, preview: told only for a job that is still the caller's
PREVIEW = _script("""
local id, execution = ARGV[1], ARGV[2]
local key = 'RQ:job:' .. id
local job = redis.call('HMGET', key, 'status', 'execution')
if job[1] == 'started' and job[2] == execution then
  forget_preview(id)
  redis.call('HSET', key, 'preview_at', tell(id, 'preview', ARGV[3]))
end
""")
