-- How many jobs an API key may submit: so many in any window of time (the generic cell rate algorithm). Kept is
-- only when all of them will be there again.
local function rate_of(owner, quota, window_s)
  local key, interval = 'OUR:rate:' .. owner, window_s / quota
  local full_at = tonumber(redis.call('GET', key) or 0)
  full_at = math.max(now, math.min(full_at, now + window_s)) -- the clock, or the rate, may have been changed
  local rate = {num_left = math.floor((now + window_s - full_at) / interval + 0.01)}
  rate.wait_s = rate.num_left < 1 and full_at + interval - now - window_s or 0
  rate.full_in_s = full_at - now
  function rate.take()
    rate.num_left, rate.full_in_s = rate.num_left - 1, rate.full_in_s + interval
    local until_full_ms = math.max(1, math.ceil(rate.full_in_s * 1000))
    redis.call('SET', key, string.format('%.6f', full_at + interval), 'PX', until_full_ms)
  end
  function rate.shown()
    return {tostring(rate.num_left), tostring(rate.full_in_s), tostring(rate.wait_s)}
  end
  return rate
end
