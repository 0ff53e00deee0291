-- Say how far jobs are that are still the caller's.
-- id, execution, step, total, ...
for i = 1, #ARGV, 4 do
  local key = 'RQ:job:' .. ARGV[i]
  local job = redis.call('HMGET', key, 'status', 'execution')
  if job[1] == 'started' and job[2] == ARGV[i + 1] then
    redis.call('HSET', key, 'step', ARGV[i + 2], 'total', ARGV[i + 3])
    add_event(ARGV[i], 'progress', ARGV[i + 2] .. ' ' .. ARGV[i + 3])
  end
end
