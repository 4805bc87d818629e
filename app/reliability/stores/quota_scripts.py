"""What Redis does for limits, each script in one step. Time is Redis's own, so that gateways need not agree on it.

A scope has two keys. `levels` is a hash: `requests` and `tokens` are the buckets, `at` when they were looked at, `of_…`
the limits they were filled by, `exposure` what running requests may use beyond what they reserved. `running` is a
sorted set of those requests, by when their lease ends; its members are `id:exposure`.
"""

from app.reliability.stores.redis import Script

_SCOPE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function refilled(level, was, limit, minutes)
  if limit < 0 then return 0 end
  if not level or not was or was < 0 then return limit end
  level = math.min(was, level + minutes * was)
  if limit ~= was then level = level / was * limit end
  return level
end

local function forget_dead(scope)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', scope.running, '-inf', now)) do
    redis.call('ZREM', scope.running, member)
    scope.exposure = scope.exposure - string.match(member, '%d+$')
  end
  scope.count = redis.call('ZCARD', scope.running)
  if scope.count == 0 then scope.exposure = 0 end
end

local function load(levels, running, of_requests, of_tokens)
  local read = redis.call('HMGET', levels, 'requests', 'tokens', 'of_requests', 'of_tokens', 'exposure', 'at')
  local was_requests, was_tokens = tonumber(read[3]), tonumber(read[4])
  local scope = {levels = levels, running = running, known = was_requests ~= nil}
  scope.of_requests, scope.of_tokens = of_requests or was_requests, of_tokens or was_tokens
  if scope.known or of_requests then
    local minutes = math.max(0, now - (tonumber(read[6]) or now)) / 60000000
    scope.requests = refilled(tonumber(read[1]), was_requests, scope.of_requests, minutes)
    scope.tokens = refilled(tonumber(read[2]), was_tokens, scope.of_tokens, minutes)
  end
  scope.exposure = tonumber(read[5]) or 0
  return scope
end

local function exact(number) return string.format('%.17g', number) end

-- Until the buckets are full nothing may be forgotten, and nothing while the lease of a request lasts.
local function save(scope, lease_us)
  redis.call('HSET', scope.levels, 'requests', exact(scope.requests), 'tokens', exact(scope.tokens),
    'of_requests', scope.of_requests, 'of_tokens', scope.of_tokens,
    'exposure', exact(math.max(0, scope.exposure)), 'at', exact(now))
  local minutes = 1
  if scope.of_requests > 0 then minutes = math.max(minutes, 1 - scope.requests / scope.of_requests) end
  if scope.of_tokens > 0 then minutes = math.max(minutes, 1 - scope.tokens / scope.of_tokens) end
  redis.call('PEXPIRE', scope.levels, exact(math.ceil(minutes * 60000 + 2 * lease_us / 1000)))
end
"""

RESERVE = Script(
    _SCOPE
    + """
-- KEYS: levels and running of each scope. ARGV: id, lease, tokens, exposure, whether it may be let in at all; then of
-- each scope its limits (-1 is none). Answers whether it was let in, and the levels of each scope before that.
local id, lease_us, tokens, exposure = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local fits = ARGV[5] == '1'
local scopes, told = {}, {0}
for i = 1, #KEYS / 2 do
  local limits = 3 * i + 3
  local of_requests, of_tokens, places = tonumber(ARGV[limits]), tonumber(ARGV[limits + 1]), tonumber(ARGV[limits + 2])
  local scope = load(KEYS[2 * i - 1], KEYS[2 * i], of_requests, of_tokens)
  forget_dead(scope)
  if of_requests >= 0 and scope.requests < 1 then fits = false end
  if places >= 0 and scope.count >= places then fits = false end
  if of_tokens >= 0 and tokens + exposure > 0 then
    fits = fits and tokens <= scope.tokens and scope.exposure <= scope.tokens
  end
  scopes[i] = scope
  for _, number in ipairs({scope.requests, scope.tokens, scope.exposure, scope.count}) do
    told[#told + 1] = exact(number)
  end
end
for _, scope in ipairs(scopes) do
  if fits then
    if scope.of_requests >= 0 then scope.requests = scope.requests - 1 end
    if scope.of_tokens >= 0 then scope.tokens = scope.tokens - tokens end
    scope.exposure = scope.exposure + exposure
    redis.call('ZADD', scope.running, exact(now + lease_us), id)
    redis.call('PEXPIRE', scope.running, exact(math.ceil(2 * lease_us / 1000)))
  end
  save(scope, lease_us)
end
told[1] = fits and 1 or 0
return told
"""
)

SETTLE = Script(
    _SCOPE
    + """
-- KEYS: levels and running, once for each settlement. ARGV: lease; then id, requests back, tokens back. Who is not
-- running has been settled before, or was given up.
local lease_us = tonumber(ARGV[1])
for i = 1, #KEYS / 2 do
  local id, requests, tokens = ARGV[3 * i - 1], tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  if redis.call('ZREM', KEYS[2 * i], id) == 1 then
    local scope = load(KEYS[2 * i - 1], KEYS[2 * i])
    if scope.known then
      if scope.of_requests >= 0 then scope.requests = math.min(scope.of_requests, scope.requests + requests) end
      if scope.of_tokens >= 0 then scope.tokens = math.min(scope.of_tokens, scope.tokens + tokens) end
      scope.exposure = scope.exposure - string.match(id, '%d+$')
      save(scope, lease_us)
    end
  end
end
return 1
"""
)

RENEW = Script(
    """
-- KEYS: gateways; then levels and running, once for each lease. ARGV: gateway, lease; then ids. Answers how many
-- gateways there are. A lease that was lost with Redis, or ran out while Redis was away, is taken up again.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local lease_us = tonumber(ARGV[2])
local ends, kept_ms = string.format('%.0f', now + lease_us), math.ceil(2 * lease_us / 1000)
redis.call('ZADD', KEYS[1], ends, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('PEXPIRE', KEYS[1], kept_ms)
for i = 1, (#KEYS - 1) / 2 do
  local levels, running, id = KEYS[2 * i], KEYS[2 * i + 1], ARGV[i + 2]
  if redis.call('ZADD', running, ends, id) == 1 then
    redis.call('HINCRBYFLOAT', levels, 'exposure', string.match(id, '%d+$'))
  end
  redis.call('PEXPIRE', running, kept_ms)
  if redis.call('PTTL', levels) < kept_ms then redis.call('PEXPIRE', levels, kept_ms) end
end
return redis.call('ZCARD', KEYS[1])
"""
)
