-- End a job with what its worker made of it.
-- id, execution, status, time, then return value | error code, error message → 1, or 0 if not the caller's
local id, execution, status, ended_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local job = redis.call('HMGET', 'RQ:job:' .. id, 'status', 'execution', 'result_ttl', 'worker_name',
                       'claimed_at')
if job[2] ~= execution then return 0 end
if job[1] ~= 'started' then return job[1] == status and 1 or 0 end -- sent again after a lost answer
if status == 'finished' then
  -- The throughput while there is work: seconds between ends of jobs, the last hundred weighing most.
  local throughput = redis.call('HMGET', 'OUR:throughput', 'ended_at', 'seconds', 'jobs')
  local seconds = now - math.max(tonumber(throughput[1] or 0), tonumber(job[5]))
  redis.call('HSET', 'OUR:throughput', 'ended_at', now, 'seconds', (throughput[2] or 0) * 0.99 + seconds,
             'jobs', (throughput[3] or 0) * 0.99 + 1)
  redis.call('XADD', 'RQ:results:' .. id, '*', 'type', 1, 'worker_name', job[4], 'execution_id', execution,
             'return_value', ARGV[5])
  redis.call('EXPIRE', 'RQ:results:' .. id, job[3])
  local total = redis.call('HGET', 'RQ:job:' .. id, 'total')
  if total then redis.call('HSET', 'RQ:job:' .. id, 'step', total) end -- progress is told now and then only
  finish(id, 'finished', 'succeeded', ended_at, 'finished')
else
  fail(id, ended_at, ARGV[5], ARGV[6])
end
return 1
