-- Give a worker the next jobs of those that it can do; it leaves the others where they are.
-- worker, free slots of interactive and of batch jobs, '1' if nothing runs there, lease_s, time, ageing_s,
-- version of messages, pipelines ...
-- → {server's clock, 1 if the worker must drain before it claims more, id, hash, id, hash, ...}
local worker, slots, batch_slots = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local is_idle, lease_s, started_at = ARGV[4] == '1', tonumber(ARGV[5]), ARGV[6]
local ageing_s, version = tonumber(ARGV[7]), tonumber(ARGV[8])
local serves = {}
for i = 9, #ARGV do serves[ARGV[i]] = true end
local answer = {string.format('%.6f', now), 0}
if redis.call('EXISTS', 'OUR:paused') == 1 then return answer end
local passed = {} -- queue → how many jobs at its front are for other workers

-- the first job of a queue that this worker can do, or that has ended
local function next_job(queue)
  local at = passed[queue] or 0
  while true do
    local ids = redis.call('LRANGE', queue, at, at + 31)
    for _, id in ipairs(ids) do
      local job = redis.call('HMGET', 'RQ:job:' .. id, 'status', 'pipeline', 'version')
      local can_do = tonumber(job[3] or 0) <= version and (not job[2] or serves[job[2]])
      if job[1] ~= 'queued' or can_do then
        passed[queue] = at
        return id
      end
      at = at + 1
    end
    if #ids < 32 then
      passed[queue] = at
      return nil
    end
  end
end

-- take one job off a queue → its number of slots, or nil when there is none for this worker
local function claim(queue)
  while true do
    local id = next_job(queue)
    if not id then return nil end
    redis.call('LREM', queue, 1, id)
    local key = 'RQ:job:' .. id
    local job = redis.call('HMGET', key, 'status', 'deadline_at', 'origin', 'slots', 'operation',
                           'submitted_at', 'owner')
    stop_waiting(id, job[3], job[7])
    if job[1] == 'queued' then
      if job[2] and tonumber(job[2]) <= now then
        fail_overdue(id, started_at)
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
        add_event(id, 'running')
        table.insert(answer, id)
        table.insert(answer, redis.call('HGETALL', key))
        return tonumber(job[4]) or 1
      end
    end
  end
end

-- A job whose worker died may be what killed it: one worker lets its batch end and runs it alone. Other jobs
-- have their turn in between.
local num_waiting = redis.call('LLEN', INTERACTIVE) + redis.call('LLEN', BATCH)
if next_job(QUARANTINE) then
  if not is_idle then
    local draining = redis.call('GET', 'OUR:draining_worker')
    if not draining or redis.call('EXISTS', 'RQ:worker:' .. draining) == 0 then draining = worker end
    redis.call('SET', 'OUR:draining_worker', draining, 'EX', 60)
    if draining == worker then
      answer[2] = 1
      return answer
    end
  elseif num_waiting == 0 or redis.call('INCR', 'OUR:quarantine_turn') % 2 == 1 then
    if claim(QUARANTINE) then
      redis.call('DEL', 'OUR:draining_worker')
      answer[2] = 1
      return answer
    end
  end
end

-- Workers that have nothing to do share what waits, and a busy one leaves it to them.
redis.call('ZREM', 'OUR:idle_workers', worker)
redis.call('ZREMRANGEBYSCORE', 'OUR:idle_workers', '-inf', now - 2)
local num_idle = redis.call('ZCARD', 'OUR:idle_workers')
local share = num_waiting
if num_idle > 0 and num_waiting > 0 then
  if not is_idle then
    redis.call('ZPOPMIN', 'OUR:idle_workers') -- asked once: it may be dead, or have other pipelines
    local next_id = next_job(INTERACTIVE) or next_job(BATCH)
    if next_id then wake_up_worker(next_id) end
    return answer
  end
  share = math.ceil(num_waiting / (num_idle + 1))
end

-- Interactive jobs first, batch jobs only where there is a slot for more interactive ones; but once a batch job
-- has waited for ageing_s, every fourth claim is a batch job.
while share > 0 do
  local oldest = batch_slots > 0 and next_job(BATCH)
  local since = oldest and tonumber(redis.call('HGET', 'RQ:job:' .. oldest, 'submitted_at'))
  local is_turn = since and now - since > ageing_s and redis.call('INCR', 'OUR:batch_turn') % 4 == 0
  local taken = not is_turn and slots > 0 and claim(INTERACTIVE)
  if taken then
    slots = slots - taken
  elseif batch_slots > 0 and (is_turn or slots > 0) then
    taken = claim(BATCH)
    batch_slots = batch_slots - (taken or 0)
  end
  if taken then
    share = share - 1
  elseif not is_turn then -- the batch jobs whose turn it was had all ended
    break
  end
end
if is_idle and num_waiting == 0 then redis.call('ZADD', 'OUR:idle_workers', now, worker) end
return answer
