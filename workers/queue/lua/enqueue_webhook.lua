-- Have a message sent to an address.
-- id, address, key of the hash that tells what came of it or '', then fields and values
enqueue_webhook(ARGV[1], ARGV[2], ARGV[3], unpack(ARGV, 4))
