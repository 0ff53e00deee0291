-- Write down what came of an attempt to send a webhook, if it is still the caller's.
-- id, claim, 'delivered' | 'failed' | 'pending', seconds until the next attempt, what was sent
-- → 1, or 0 if not the caller's
local id, claim, status, again_in_s, body = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local key = 'OUR:webhook:' .. id
local webhook = redis.call('HMGET', key, 'claim', 'told_in', 'host')
if webhook[1] ~= claim then return 0 end
local attempts = redis.call('HINCRBY', key, 'attempts', 1)
count('webhook_attempts', status)
if status == 'pending' then
  if body ~= '' then redis.call('HSET', key, 'body', body) end
  schedule_webhook(webhook[3], id, now + again_in_s)
else
  redis.call('DEL', key)
  schedule_webhook(webhook[3], id, nil)
end
if webhook[2] ~= '' and redis.call('EXISTS', webhook[2]) == 1 then
  redis.call('HSET', webhook[2], 'webhook', status .. ' ' .. attempts)
end
return 1
