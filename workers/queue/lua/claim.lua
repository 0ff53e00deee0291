-- Give a worker the next jobs.
-- worker, free slots, '1' if nothing runs there, lease_s, time, ageing_s
-- → {server's clock, 1 if the worker must drain before it claims more, id, hash, id, hash, ...}
local worker, slots, is_idle, lease_s = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local started_at, ageing_s = ARGV[5], tonumber(ARGV[6])
local answer = {string.format('%.6f', now), 0}

-- take one job off a queue → its number of slots, or nil when the queue is empty
local function claim(queue)
  while true do
    local id = redis.call('LPOP', queue)
    if not id then return nil end
    local key = 'RQ:job:' .. id
    local job = redis.call('HMGET', key, 'status', 'deadline_at', 'origin', 'slots', 'operation',
                           'submitted_at')
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
if redis.call('LLEN', QUARANTINE) > 0 then
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
    redis.call('ZPOPMIN', 'OUR:idle_workers') -- asked once: it may be dead
    wake_up_worker()
    return answer
  end
  share = math.ceil(num_waiting / (num_idle + 1))
end

-- Interactive jobs first; but once a batch job has waited for ageing_s, every fourth claim is a batch job.
while slots > 0 and share > 0 do
  local oldest = redis.call('LINDEX', BATCH, 0)
  local since = oldest and tonumber(redis.call('HGET', 'RQ:job:' .. oldest, 'submitted_at'))
  local taken
  if since and now - since > ageing_s and redis.call('INCR', 'OUR:batch_turn') % 4 == 0 then
    taken = claim(BATCH) or claim(INTERACTIVE)
  else
    taken = claim(INTERACTIVE) or claim(BATCH)
  end
  if not taken then break end
  slots, share = slots - taken, share - 1
end
if is_idle and #answer == 2 then redis.call('ZADD', 'OUR:idle_workers', now, worker) end
return answer
