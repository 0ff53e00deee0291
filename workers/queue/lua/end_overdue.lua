-- End jobs whose deadline has passed.
-- time → their ids
local ended_at = ARGV[1]
local ended = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'OUR:deadlines', '-inf', now, 'LIMIT', 0, 100)) do
  local job = redis.call('HMGET', 'RQ:job:' .. id, 'status', 'origin')
  if job[1] == 'started' then revoke(id) end
  if job[1] == 'queued' then leave_queue(id, job[2]) end
  if job[1] == 'started' or job[1] == 'queued' then fail_overdue(id, ended_at) end
  redis.call('ZREM', 'OUR:deadlines', id)
  table.insert(ended, id)
end
return ended
