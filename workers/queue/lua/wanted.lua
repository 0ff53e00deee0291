-- Name pipelines that waiting jobs want of a worker that has not loaded them. Another worker that has one, or
-- has said that it loads it, gets the first patience_s.
-- worker, lease_s, patience_s, pipelines ...
-- → {pipeline, seconds its first job has waited, 1 if another living worker takes jobs for it, ...}
local worker, lease_s, patience_s = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local answer = {}
if redis.call('EXISTS', 'OUR:paused') == 1 then return answer end
local asked, wanted, waited = {}, {}, {}
for i = 4, #ARGV do asked[ARGV[i]] = true end
for _, queue in ipairs({QUARANTINE, INTERACTIVE, BATCH}) do
  for _, id in ipairs(redis.call('LRANGE', queue, 0, 255)) do
    local job = redis.call('HMGET', 'RQ:job:' .. id, 'status', 'pipeline', 'submitted_at')
    local pipeline = job[2]
    if job[1] == 'queued' and pipeline and asked[pipeline] then
      if not waited[pipeline] then
        table.insert(wanted, pipeline)
        waited[pipeline] = 0
      end
      waited[pipeline] = math.max(waited[pipeline], now - (tonumber(job[3]) or now))
    end
  end
end
if #wanted == 0 then return answer end
local taken, loaded = {}, {} -- by the other living workers
for _, key in ipairs(redis.call('SMEMBERS', 'RQ:workers')) do
  if key ~= 'RQ:worker:' .. worker then
    local known = redis.call('HMGET', key, 'phase', 'pipelines', 'open')
    if known[1] then
      for name in string.gmatch(known[2] or '', '[^\n]+') do taken[name] = true end
      -- one that doesn't say which are loaded is older than this field: all are
      for name in string.gmatch(known[3] or known[2] or '', '[^\n]+') do loaded[name] = true end
    end
  end
end
for _, pipeline in ipairs(wanted) do
  local key = 'OUR:loading:' .. pipeline
  local is_urgent = waited[pipeline] >= patience_s
  local is_ours = redis.call('GET', key) or worker
  if is_urgent or (not loaded[pipeline] and is_ours == worker) then
    redis.call('SET', key, worker, 'EX', math.ceil(2 * lease_s))
    table.insert(answer, pipeline)
    table.insert(answer, tostring(waited[pipeline]))
    table.insert(answer, taken[pipeline] and 1 or 0)
  end
end
return answer
