-- Put a started job back: to the front of its queue as if it had never been taken, or into quarantine.
-- id, execution, 'front' or 'quarantine', max_tries, time → 1, or 0 if not the caller's
local id, execution, where, max_tries, ended_at = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local key = 'RQ:job:' .. id
local job = redis.call('HMGET', key, 'status', 'execution', 'origin', 'tries')
if job[1] ~= 'started' or job[2] ~= execution then return 0 end
if where == 'front' then
  redis.call('HINCRBY', key, 'tries', -1)
  requeue(id, 'LPUSH', 'RQ:queue:' .. job[3])
elseif tonumber(job[4]) >= max_tries then
  fail(id, ended_at, 'internal_error', 'The job could not be computed.')
else
  requeue(id, 'RPUSH', QUARANTINE)
end
return 1
