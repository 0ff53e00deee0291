-- Show what a job is on the way to, if it is still the caller's.
-- id, execution, preview
local id, execution = ARGV[1], ARGV[2]
local key = 'RQ:job:' .. id
local job = redis.call('HMGET', key, 'status', 'execution')
if job[1] == 'started' and job[2] == execution then
  remove_preview(id)
  redis.call('HSET', key, 'preview_at', add_event(id, 'preview', ARGV[3]))
end
