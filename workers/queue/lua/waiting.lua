-- The waiting jobs of each API key: how many there are, and whose turn it is. scripts.py puts it before all else.
-- OUR:waiting:<queue>:<owner> has the ids, by the round in which each has its turn: a job is in it exactly
-- while it is in the queue's list, or in quarantine. A key has one job in each round, so that a key with one
-- job does not wait for the two hundred of another. Jobs of no key are taken as they come.
-- OUR:share:<owner> has those of them that count for the share of the queue that a key may have: rows of batches
-- don't, which have a share of their own.

local function waiting_key(queue, owner)
  return 'OUR:waiting:' .. queue .. ':' .. owner
end

local function round_of(id)
  return tonumber(redis.call('HGET', 'RQ:job:' .. id, 'round') or 0)
end

-- a job no longer waits
local function stop_waiting(id, queue, owner)
  if not owner or owner == '' then return end
  redis.call('ZREM', waiting_key(queue or '', owner), id)
  redis.call('SREM', 'OUR:share:' .. owner, id)
end

-- a job waits again, at its front or in quarantine
local function wait_again(id, queue, owner)
  if not owner or owner == '' then return end
  redis.call('ZADD', waiting_key(queue or '', owner), round_of(id), id)
  if redis.call('HEXISTS', 'RQ:job:' .. id, 'counts') == 1 then redis.call('SADD', 'OUR:share:' .. owner, id) end
end

local function is_queued(id)
  return redis.call('HGET', 'RQ:job:' .. id, 'status') == 'queued'
end

-- a job of a key counts for its share
local function count_in_share(id, owner)
  if owner == '' then return end
  redis.call('HSET', 'RQ:job:' .. id, 'counts', 1)
  redis.call('SADD', 'OUR:share:' .. owner, id)
end

-- how many jobs of a key count, once those are forgotten that were removed by others than our scripts
local function num_waiting_of(owner, num_checked)
  local share = 'OUR:share:' .. owner
  for _, id in ipairs(redis.call('SRANDMEMBER', share, num_checked)) do
    if not is_queued(id) then redis.call('SREM', share, id) end
  end
  return redis.call('SCARD', share)
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
  for _, ends in ipairs({{0, 1}, {-2, -1}}) do -- as above; more than one for each that comes
    for _, each in ipairs(redis.call('ZRANGE', waiting_key(queue, owner), unpack(ends))) do
      if not is_queued(each) then redis.call('ZREM', waiting_key(queue, owner), each) end
    end
  end
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
