-- End a job with what its worker made of it.
-- id, execution, status, time, calls of the model done and to do or '' and '', samples that shared each or '',
-- then result | error code, error message → 1, or 0 if not the caller's
local id, execution, status, ended_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local job = redis.call('HMGET', 'RQ:job:' .. id, 'status', 'execution', 'result_ttl', 'worker_name',
                       'claimed_at', 'cost', 'version')
if job[2] ~= execution then return 0 end
if job[1] ~= 'started' then return job[1] == status and 1 or 0 end -- sent again after a lost answer
local step, total, batch_size = ARGV[5], ARGV[6], ARGV[7]
if step ~= '' then redis.call('HSET', 'RQ:job:' .. id, 'step', step, 'total', total) end
if batch_size ~= '' then redis.call('HSET', 'RQ:job:' .. id, 'batch_size', batch_size) end
if status == 'finished' then
  -- How fast work is done while there is some: seconds between ends of jobs, the last hundred weighing most.
  local rate = redis.call('HMGET', 'OUR:work_rate', 'ended_at', 'seconds', 'cost', 'jobs')
  local seconds = now - math.max(tonumber(rate[1] or 0), tonumber(job[5]))
  redis.call('HSET', 'OUR:work_rate', 'ended_at', now, 'seconds', (rate[2] or 0) * 0.99 + seconds,
             'cost', (rate[3] or 0) * 0.99 + (job[6] or 1), 'jobs', (rate[4] or 0) * 0.99 + 1)
  if job[7] then
    redis.call('SET', 'OUR:result:' .. id, ARGV[8], 'EX', job[3])
  else -- an older front end, which looks for it where RQ keeps results: a stream, of 4 KB at least
    redis.call('XADD', 'RQ:results:' .. id, '*', 'type', 1, 'worker_name', job[4], 'execution_id', execution,
               'return_value', ARGV[8])
    redis.call('EXPIRE', 'RQ:results:' .. id, job[3])
  end
  finish(id, 'finished', 'succeeded', ended_at, 'finished')
else
  fail(id, ended_at, ARGV[8], ARGV[9])
end
return 1
