-- Have a message sent to an address.
-- id, address, message, how long what came of it is told
local told_in = 'OUR:webhook_told:' .. ARGV[1]
redis.call('HSET', told_in, 'webhook', 'pending 0')
redis.call('EXPIRE', told_in, ARGV[4])
enqueue_webhook(ARGV[1], ARGV[2], told_in, 'body', ARGV[3])
