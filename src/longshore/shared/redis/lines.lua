-- What every verb stands on: requests, the lines they wait in, what holders hold, and replies.
--
-- The only file that knows the keys of leases, mailboxes, lines and holdings.  Scripts are atomic, so there is no lock
-- in here and no state between two calls but keys of the server.
--
-- ARGV: client, verb, key, holder, number, id of the request (0: no reply is wanted), 1 if it may wait, fields.
-- An answer is {status, number, field, ...}; WAITING says that it will come by the client's mailbox, and in how many ms
-- the next lease may run out.
--
-- longshore:leases     clients by the end of their lease, in ms of the server's clock
-- longshore:o:KEY      an object: its parameters `p`, and what its kind keeps there
-- longshore:l:LKEY     a line L of an object: members `client holder id`, by order of arrival
-- longshore:w:CLIENT   the requests of a client that wait, by id
-- longshore:h:CLIENT:HOLDER  what a holder has: keys, and `w` with the ids of its requests that wait
-- longshore:c:CLIENT   the holders of a client that have anything
-- longshore:g:CLIENT   the keys of objects that must hear of the end of the client
-- longshore:m:CLIENT   the mailbox, a stream: what its client has not said to have taken is undone when it goes

local P = 'longshore:'
local call = redis.call
local LOST, WAITING = -1, -2
local OK, LATE, CANCELLED, CONFLICT, NOT_HELD, ABSENT, BROKEN, CLOSED, TOO_LARGE, UNKNOWN = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
local kinds = {}
local answer = {OK, 0}
local fields = {unpack(ARGV, 8, math.min(#ARGV, 16))}
local this = {client = ARGV[1], verb = tonumber(ARGV[2]), key = ARGV[3], holder = ARGV[4], number = ARGV[5],
    id = ARGV[6], patient = ARGV[7] == '1', field = fields[1], here = true}

local function now()
    local time = call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function get(key, field)
    return call('HGET', P .. 'o:' .. key, field)
end

local function put(key, ...)
    call('HSET', P .. 'o:' .. key, ...)
end

local function forget(key, ...)
    call('HDEL', P .. 'o:' .. key, ...)
end

local function grow(key, field, by)
    return call('HINCRBY', P .. 'o:' .. key, field, by)
end

-- The number in the parameters, as in `maxsize=3`.
local function size_of(key)
    return tonumber(string.match(get(key, 'p'), '%d+') or '0')
end

-- A number that no other has.
local function next_number()
    return call('INCR', P .. 'order')
end

local function hold(client, holder, what)
    if call('SADD', P .. 'h:' .. client .. ':' .. holder, what) == 1 then
        call('SADD', P .. 'c:' .. client, holder)
    end
end

local function let_go(client, holder, what)
    local held = P .. 'h:' .. client .. ':' .. holder
    call('SREM', held, what)
    if call('EXISTS', held) == 0 then
        call('SREM', P .. 'c:' .. client, holder)
    end
end

local function watch(client, key)
    call('SADD', P .. 'g:' .. client, key)
end

-- In how many ms the next lease of another client ends, unless it is renewed.
local function next_end(time)
    local found = call('ZRANGE', P .. 'leases', 0, 1, 'WITHSCORES')
    local score = found[1] == this.client and found[4] or found[2]
    return score and math.max(0, score - time) or 3600000
end

local function reply(r, status, number, ...)
    if r.line then
        call('HDEL', P .. 'w:' .. r.client, r.id)
        let_go(r.client, r.holder, 'w' .. r.id)
        r.line = nil
    end
    if r.here then
        answer = {status, number or 0, ...}
        return
    end
    local parts = {...}
    local head = {r.id, status, number or 0}
    for i = 1, #parts do
        head[#head + 1] = #parts[i]
    end
    call('XADD', P .. 'm:' .. r.client, '*', 'v', table.concat(head, ' ') .. '\n' .. table.concat(parts),
        'key', r.key, 'verb', r.verb, 'number', r.number)
end

local function enter(r, line)
    if not r.line then
        hold(r.client, r.holder, 'w' .. r.id)
    end
    r.line = line
    local record = {line, r.client, r.holder, r.id, r.verb, r.key, r.number, r.field or '', r.outcome or ''}
    call('HSET', P .. 'w:' .. r.client, r.id, cmsgpack.pack(record))
    call('ZADD', P .. 'l:' .. line .. r.key, next_number(), r.client .. ' ' .. r.holder .. ' ' .. r.id)
    if r.here then
        answer = {WAITING, next_end(now())}
    end
end

local function wait(r, line)
    if r.patient and r.id ~= '0' then
        enter(r, line)
    else
        kinds[r.key:sub(1, 1)].left(r, LATE)
    end
end

local function load(client, id)
    local packed = call('HGET', P .. 'w:' .. client, id)
    if not packed then
        return nil
    end
    local f = cmsgpack.unpack(packed)
    return {line = f[1], client = f[2], holder = f[3], id = f[4], verb = f[5], key = f[6], number = f[7],
        field = f[8], outcome = f[9]}
end

-- The request of a line that has waited longest, taken out; nil if there is none.
local function first(line, key)
    local found = call('ZPOPMIN', P .. 'l:' .. line .. key)
    if not found[1] then
        return nil
    end
    local client, id = string.match(found[1], '^(%S+) %S+ (%S+)$')
    return load(client, id)
end

local function waiting(line, key)
    return call('ZCARD', P .. 'l:' .. line .. key)
end

local function take_out(r)
    call('ZREM', P .. 'l:' .. r.line .. r.key, r.client .. ' ' .. r.holder .. ' ' .. r.id)
end

-- A request that waited is out of its line: late, cancelled, or (nil) its holder or client is gone.
local function left(r, status)
    if status then
        reply(r, status)
    end
end
