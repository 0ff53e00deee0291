-- Cancel a job that has not ended.
-- id, time → 1 if there is such a job
local id, ended_at = ARGV[1], ARGV[2]
local job = redis.call('HMGET', 'RQ:job:' .. id, 'status', 'origin')
if not job[1] then return 0 end
if job[1] == 'started' then revoke(id) end
if job[1] == 'queued' then leave_queue(id, job[2]) end
if job[1] == 'started' or job[1] == 'queued' then
  finish(id, 'canceled', 'cancelled', ended_at, 'canceled', 'execution', '')
end
return 1
