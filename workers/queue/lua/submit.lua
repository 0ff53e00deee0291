-- Put a job in its queue, unless it is full or no living worker has the job's pipeline.
-- id, queue, max_length, deadline_s or '', pipeline, then fields and values
-- → {'accepted' | 'queue_full' | 'pipeline_not_served', jobs waiting before it}
local id, queue, max_length, deadline_s = ARGV[1], 'RQ:queue:' .. ARGV[2], ARGV[3], ARGV[4]
local key = 'RQ:job:' .. id
local waiting = redis.call('LLEN', INTERACTIVE) + redis.call('LLEN', BATCH) + redis.call('LLEN', QUARANTINE)
if redis.call('EXISTS', key) == 1 then return {'accepted', waiting} end -- sent again after a lost answer
if waiting >= tonumber(max_length) then return {'queue_full', waiting} end
if is_unserved(ARGV[5]) then return {'pipeline_not_served', waiting} end
redis.call('HSET', key, 'submitted_at', now, unpack(ARGV, 6))
if deadline_s ~= '' then
  redis.call('HSET', key, 'deadline_at', now + deadline_s)
  redis.call('ZADD', 'OUR:deadlines', now + deadline_s, id)
end
for blob in string.gmatch(redis.call('HGET', key, 'blobs') or '', '%S+') do
  redis.call('SADD', 'OUR:blob:' .. blob, id)
end
redis.call('SADD', 'RQ:queues', queue)
redis.call('RPUSH', queue, id)
count('jobs_submitted', redis.call('HGET', key, 'operation') or '', ARGV[2])
add_event(id, 'queued')
wake_up_worker(id)
return {'accepted', waiting}
