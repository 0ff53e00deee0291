-- Give a front end webhooks that are due, for so long.
-- lease_s, how many at most, how many of a host at most, then hosts that it sends to and to how many times
-- → {id, hash, id, hash, ...}
local lease_s, limit, limit_per_host = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local busy, num_busy = {}, 0
for i = 4, #ARGV, 2 do
  busy[ARGV[i]] = tonumber(ARGV[i + 1])
  num_busy = num_busy + 1
end
local answer = {}
local hosts = redis.call('ZRANGEBYSCORE', 'OUR:webhook_hosts', '-inf', now, 'LIMIT', 0, limit + num_busy)
for _, host in ipairs(hosts) do
  local free = math.min(limit, limit_per_host - (busy[host] or 0))
  local ids = {}
  if free > 0 then
    ids = redis.call('ZRANGEBYSCORE', 'OUR:webhooks:' .. host, '-inf', now, 'LIMIT', 0, free)
  end
  for _, id in ipairs(ids) do
    local key = 'OUR:webhook:' .. id
    if redis.call('EXISTS', key) == 0 then
      schedule_webhook(host, id, nil) -- nobody could send it, for a week
    else
      redis.call('HINCRBY', key, 'claim', 1)
      schedule_webhook(host, id, now + lease_s)
      table.insert(answer, id)
      table.insert(answer, redis.call('HGETALL', key))
      limit = limit - 1
    end
  end
end
return answer
