-- The waiting jobs of each API key: how many there are, and whose turn it is. scripts.py puts it before all else.
-- OUR:waiting:<queue>:<owner> has the ids, by the round in which each has its turn: a job is in it exactly
-- while it is in the queue's list, or in quarantine. A key has one job in each round, so that a key with one
-- job does not wait for the two hundred of another. Jobs of no key are taken as they come.

local function waiting_key(queue, owner)
  return 'OUR:waiting:' .. queue .. ':' .. owner
end

local function round_of(id)
  return tonumber(redis.call('HGET', 'RQ:job:' .. id, 'round') or 0)
end

-- a job no longer waits
local function stop_waiting(id, queue, owner)
  if owner and owner ~= '' then redis.call('ZREM', waiting_key(queue or '', owner), id) end
end

-- a job waits again, at its front or in quarantine
local function wait_again(id, queue, owner)
  if owner and owner ~= '' then redis.call('ZADD', waiting_key(queue or '', owner), round_of(id), id) end
end

-- how many jobs of a key wait, once those are forgotten that were removed by others than our scripts
local function num_waiting_of(owner, num_checked)
  local number = 0
  for _, queue in ipairs({'interactive', 'batch'}) do
    local key = waiting_key(queue, owner)
    for _, id in ipairs(redis.call('ZRANGE', key, 0, num_checked - 1)) do
      if redis.call('HGET', 'RQ:job:' .. id, 'status') ~= 'queued' then redis.call('ZREM', key, id) end
    end
    number = number + redis.call('ZCARD', key)
  end
  return number
end

-- put a new job in its queue, after those of its round and before those of the next
local function take_turn(id, queue, owner)
  local list = 'RQ:queue:' .. queue
  if owner == '' then
    redis.call('RPUSH', list, id)
    return
  end
  local length = redis.call('LLEN', list)
  local first = length > 0 and round_of(redis.call('LINDEX', list, 0)) or 0
  local own = redis.call('ZREVRANGE', waiting_key(queue, owner), 0, 0, 'WITHSCORES')
  local round = math.max(first, own[2] and tonumber(own[2]) + 1 or 0)
  redis.call('HSET', 'RQ:job:' .. id, 'round', round)
  redis.call('ZADD', waiting_key(queue, owner), round, id)
  if length == 0 or round_of(redis.call('LINDEX', list, -1)) <= round then
    redis.call('RPUSH', list, id)
    return
  end
  local low, high = 0, length - 1 -- the first of a later round is in here
  while low < high do
    local middle = math.floor((low + high) / 2)
    if round_of(redis.call('LINDEX', list, middle)) <= round then low = middle + 1 else high = middle end
  end
  redis.call('LINSERT', list, 'BEFORE', redis.call('LINDEX', list, low), id)
end
