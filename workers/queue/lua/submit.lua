-- Put a job in its queue, unless it is full or no living worker has the job's pipeline. Where the idempotency
-- key has made a job before, that one stands.
-- id, queue, max_length, deadline_s or '', pipeline, where an idempotency key is kept or '', digest of the
-- request, then fields and values
-- → {'accepted' | 'queue_full' | 'pipeline_not_served', jobs waiting before it}
--   | {'replayed' | 'idempotency_key_reused', jobs waiting, the id of the job that the key has made}
local id, queue, max_length, deadline_s = ARGV[1], 'RQ:queue:' .. ARGV[2], ARGV[3], ARGV[4]
local key = 'RQ:job:' .. id
local idempotency_key, digest = ARGV[6], ARGV[7]
local waiting = redis.call('LLEN', INTERACTIVE) + redis.call('LLEN', BATCH) + redis.call('LLEN', QUARANTINE)
if redis.call('EXISTS', key) == 1 then return {'accepted', waiting} end -- sent again after a lost answer
if idempotency_key ~= '' then
  local kept, made = string.match(redis.call('GET', idempotency_key) or '', '^(%S+) (%S+)$')
  if made and redis.call('EXISTS', 'RQ:job:' .. made) == 1 then
    return {kept == digest and 'replayed' or 'idempotency_key_reused', waiting, made}
  end
end
if waiting >= tonumber(max_length) then return {'queue_full', waiting} end
if is_unserved(ARGV[5]) then return {'pipeline_not_served', waiting} end
redis.call('HSET', key, 'submitted_at', now, unpack(ARGV, 8))
if idempotency_key ~= '' then
  redis.call('SET', idempotency_key, digest .. ' ' .. id) -- until the job's end, and from then as long as it
  redis.call('HSET', key, 'idempotency_key', idempotency_key)
end
if deadline_s ~= '' then
  redis.call('HSET', key, 'deadline_at', now + deadline_s)
  redis.call('ZADD', 'OUR:deadlines', now + deadline_s, id)
end
for blob in string.gmatch(redis.call('HGET', key, 'blobs') or '', '%S+') do
  redis.call('SADD', 'OUR:blob:' .. blob, id)
end
local jobs = 'OUR:jobs:' .. (redis.call('HGET', key, 'owner') or '')
for _, some in ipairs({redis.call('ZRANGE', jobs, 0, 1), redis.call('ZRANDMEMBER', jobs, 4)}) do
  for _, job in ipairs(some) do -- more than one for each that comes, so that none pile up
    if redis.call('EXISTS', 'RQ:job:' .. job) == 0 then redis.call('ZREM', jobs, job) end
  end
end
redis.call('ZADD', jobs, now, id)
redis.call('SADD', 'RQ:queues', queue)
redis.call('RPUSH', queue, id)
count('jobs_submitted', redis.call('HGET', key, 'operation') or '', ARGV[2])
add_event(id, 'queued')
wake_up_worker(id)
return {'accepted', waiting}
