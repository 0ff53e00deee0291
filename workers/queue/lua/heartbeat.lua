-- Renew the leases of a worker's jobs.
-- lease_s, then id, execution, ... → the ids that are no longer the caller's
local lost = {}
for i = 2, #ARGV, 2 do
  local job = redis.call('HMGET', 'RQ:job:' .. ARGV[i], 'status', 'execution')
  if job[1] == 'started' and job[2] == ARGV[i + 1] then
    redis.call('ZADD', 'OUR:leases', now + ARGV[1], ARGV[i])
  else
    table.insert(lost, ARGV[i])
  end
end
return lost
