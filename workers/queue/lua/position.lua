-- Say how much work is before a job that waits.
-- id, queue → {jobs before it, seconds until it is done or nil}; nothing when it was taken in this moment
-- While the queue is paused nobody knows how long that takes.
local id, origin = ARGV[1], ARGV[2]

-- the jobs of a queue before this one, or all → their number and cost, and whether it is among them
-- In a long queue the cost is that of its first jobs, times as many: to ask each would hold up all others.
local MAX_ASKED = 64
local function before(queue)
  local position = redis.call('LPOS', queue, id)
  local number = position or redis.call('LLEN', queue)
  if number == 0 then return 0, 0, position end
  local cost = 0
  local ids = redis.call('LRANGE', queue, 0, math.min(number, MAX_ASKED) - 1)
  for _, each in ipairs(ids) do
    cost = cost + (redis.call('HGET', 'RQ:job:' .. each, 'cost') or 1)
  end
  return number, cost * number / #ids, position
end

local position, cost, is_there = before(QUARANTINE)
if not is_there then
  local num_before, cost_before = position, cost
  position, cost, is_there = before(INTERACTIVE)
  if not is_there and origin == 'batch' then
    num_before, cost_before = num_before + position, cost_before + cost
    position, cost, is_there = before(BATCH)
  end
  position, cost = num_before + position, cost_before + cost
end
if not is_there then return {} end
local running = 0
for _, each in ipairs(redis.call('ZRANGE', 'OUR:leases', 0, -1)) do
  local job = redis.call('HMGET', 'RQ:job:' .. each, 'cost', 'step', 'total')
  local done = job[2] and tonumber(job[2]) / math.max(1, tonumber(job[3])) or 0
  running = running + (job[1] or 1) * (1 - done)
end
local own = redis.call('HGET', 'RQ:job:' .. id, 'cost') or 1
local rate = redis.call('HMGET', 'OUR:work_rate', 'seconds', 'cost')
if not rate[1] or redis.call('EXISTS', 'OUR:paused') == 1 then return {position} end
return {position, tostring((cost + running + own) * rate[1] / rate[2])}
