-- Take jobs from workers whose lease has run out, and remove what has expired.
-- lease_s, max_tries, time → {id, 'tried again' | 'lost', the job's trace or '', ...}
local lease_s, max_tries, ended_at = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local reaped = {}
-- When nobody has reaped for a lease (the server was away, the machine asleep), no worker could renew its
-- leases: they get time to do so first.
local reaped_at = tonumber(redis.call('GET', 'OUR:reaped_at'))
redis.call('SET', 'OUR:reaped_at', now)
if not reaped_at or now - reaped_at > lease_s then
  redis.call('SET', 'OUR:reaping_paused', 1, 'PX', math.floor(500 * lease_s + 500))
end
if redis.call('EXISTS', 'OUR:reaping_paused') == 0 then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'OUR:leases', '-inf', now, 'LIMIT', 0, 100)) do
    local key = 'RQ:job:' .. id
    local job = redis.call('HMGET', key, 'status', 'tries', 'trace')
    if job[1] ~= 'started' then
      redis.call('ZREM', 'OUR:leases', id)
    else
      revoke(id)
      table.insert(reaped, id)
      if tonumber(job[2]) >= max_tries then
        fail(id, ended_at, 'worker_lost', 'The workers that ran it died, ' .. job[2] .. ' times.')
        redis.call('HSET', key, 'execution', '')
        table.insert(reaped, 'lost')
      else
        requeue(id, 'RPUSH', QUARANTINE)
        table.insert(reaped, 'tried again')
      end
      table.insert(reaped, job[3] or '')
    end
  end
end
for _, queue in ipairs({'interactive', 'batch'}) do
  for _, registry in ipairs({'finished', 'failed', 'canceled'}) do
    redis.call('ZREMRANGEBYSCORE', 'RQ:' .. registry .. ':' .. queue, '-inf', now)
  end
end
for _, workers in ipairs({'RQ:workers', 'RQ:workers:interactive', 'RQ:workers:batch'}) do
  for _, worker in ipairs(redis.call('SMEMBERS', workers)) do
    if redis.call('EXISTS', worker) == 0 then redis.call('SREM', workers, worker) end
  end
end
return reaped
