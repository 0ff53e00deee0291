-- Put a job in its queue, unless it is full or no living worker has the job's pipeline. Where the idempotency
-- key has made a job before, that one stands.
-- id, queue, max_length, deadline_s or '', pipeline, where an idempotency key is kept or '', digest of the
-- request, owner, max_waiting of the owner's jobs or '', quota of the owner's rate or '', its window_s, then
-- fields and values
-- → {'accepted' | 'queue_full' | 'queue_share_exceeded' | 'rate_limit_exceeded' | 'pipeline_not_served', jobs
--    waiting before it, jobs of the owner that wait, {jobs left of its rate, full again in s, wait_s}}
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
local owner, max_waiting, own_waiting, rate = ARGV[8], tonumber(ARGV[9]), 0, nil
if max_waiting then own_waiting = num_waiting_of(owner, 4) end
if max_waiting and own_waiting >= max_waiting then own_waiting = num_waiting_of(owner, 256) end
if ARGV[10] ~= '' then rate = rate_of(owner, tonumber(ARGV[10]), tonumber(ARGV[11])) end
local function verdict(text)
  return {text, waiting, own_waiting, rate and rate.shown() or {}}
end
if rate and rate.num_left < 1 then return verdict('rate_limit_exceeded') end
if max_waiting and own_waiting >= max_waiting then return verdict('queue_share_exceeded') end
if waiting >= tonumber(max_length) then return verdict('queue_full') end
if is_unserved(ARGV[5]) then return verdict('pipeline_not_served') end
if rate then rate.take() end
redis.call('HSET', key, 'submitted_at', now, unpack(ARGV, 12))
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
local jobs = 'OUR:jobs:' .. owner
for _, some in ipairs({redis.call('ZRANGE', jobs, 0, 1), redis.call('ZRANDMEMBER', jobs, 4)}) do
  for _, job in ipairs(some) do -- more than one for each that comes, so that none pile up
    if redis.call('EXISTS', 'RQ:job:' .. job) == 0 then redis.call('ZREM', jobs, job) end
  end
end
redis.call('ZADD', jobs, now, id)
redis.call('SADD', 'RQ:queues', queue)
take_turn(id, ARGV[2], owner)
if max_waiting then count_in_share(id, owner) end
count('jobs_submitted', redis.call('HGET', key, 'operation') or '', ARGV[2])
add_event(id, 'queued')
wake_up_worker(id)
return verdict('accepted')
