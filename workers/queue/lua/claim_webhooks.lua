-- Give a front end webhooks that are due, for so long.
-- lease_s, how many at most → {id, hash, id, hash, ...}
local lease_s, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local answer = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'OUR:webhooks', '-inf', now, 'LIMIT', 0, limit)) do
  local key = 'OUR:webhook:' .. id
  if redis.call('EXISTS', key) == 0 then
    redis.call('ZREM', 'OUR:webhooks', id) -- nobody could send it, for a week
  else
    redis.call('HINCRBY', key, 'claim', 1)
    redis.call('ZADD', 'OUR:webhooks', now + lease_s, id)
    table.insert(answer, id)
    table.insert(answer, redis.call('HGETALL', key))
  end
end
return answer
