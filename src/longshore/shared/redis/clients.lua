-- The end of the script of clients: who comes, stays, goes, and whose lease has run out.
--
-- The key says what to do; the number is the lease in ms.

local function release(client, holder)
    for _, key in ipairs(call('SMEMBERS', P .. 'h:' .. client .. ':' .. holder)) do
        local kind = kinds[key:sub(1, 1)]
        if kind and kind.released then
            let_go(client, holder, key)
            kind.released(client, holder, key)
        end
    end
end

-- Take all requests of `ids` out of their lines, and only then let the others go on: none of these may be next.
local function take_all_out(client, ids)
    local found = {}
    for _, id in ipairs(ids) do
        local r = load(client, id)
        if r then
            take_out(r)
            found[#found + 1] = r
        end
    end
    for _, r in ipairs(found) do
        kinds[r.key:sub(1, 1)].left(r, nil)
    end
    return found
end

-- What was sent to a client and it has not taken goes to others.
local function undo(entry)
    local letter, key, verb, number = entry[2], entry[4], tonumber(entry[6]), entry[8]
    local kind = kinds[key:sub(1, 1)]
    local head, rest = string.match(letter, '^([^\n]*)\n(.*)$')
    local status, size = string.match(head, '^%d+ (%d+) %d+ ?(%d*)')
    if kind.undone and tonumber(status) == OK then
        size = tonumber(size) or 0
        kind.undone(key, verb, number, rest:sub(1, size), rest:sub(size + 1))
    end
end

local function leave(client)
    call('ZREM', P .. 'leases', client)
    take_all_out(client, call('HKEYS', P .. 'w:' .. client))
    local holders = call('SMEMBERS', P .. 'c:' .. client)
    for _, holder in ipairs(holders) do
        release(client, holder)
    end
    for _, key in ipairs(call('SMEMBERS', P .. 'g:' .. client)) do
        kinds[key:sub(1, 1)].gone(client, key)
    end
    local mail = call('XRANGE', P .. 'm:' .. client, '-', '+')
    for i = #mail, 1, -1 do
        undo(mail[i][2])
    end
    for _, holder in ipairs(holders) do
        call('DEL', P .. 'h:' .. client .. ':' .. holder)
    end
    call('DEL', P .. 'w:' .. client, P .. 'c:' .. client, P .. 'g:' .. client, P .. 'm:' .. client)
end

local function end_holder(client, holder)
    local ids = {}
    for _, key in ipairs(call('SMEMBERS', P .. 'h:' .. client .. ':' .. holder)) do
        if key:sub(1, 1) == 'w' then
            ids[#ids + 1] = key:sub(2)
        end
    end
    for _, r in ipairs(take_all_out(client, ids)) do
        reply(r, CANCELLED)
    end
    release(client, holder)
end

local function cancel(client, id, status)
    local r = load(client, id)
    if r then
        r.score = call('ZSCORE', P .. 'l:' .. r.line .. r.key, r.client .. ' ' .. r.holder .. ' ' .. r.id)
        take_out(r)
        kinds[r.key:sub(1, 1)].left(r, status)
    end
end

local time = now()
local what = this.key
if what == 'join' then
    -- A server that was started again may have lost everything, or the last seconds; its run_id is another one.  The
    -- epoch is the time in seconds, and rises as long as nobody joins within the second in which it was started.
    local info = call('INFO', 'server')
    local run, uptime = string.match(info, 'run_id:(%w+)'), tonumber(string.match(info, 'uptime_in_seconds:(%d+)'))
    if call('GET', P .. 'run') ~= run then
        if uptime < 1 then
            return {WAITING, 0}
        end
        local before = math.max(tonumber(call('GET', P .. 'epoch') or '0'), tonumber(this.field))
        call('SET', P .. 'epoch', string.format('%.0f', math.max(math.floor(time / 1000), before + 1)))
        call('SET', P .. 'run', run)
    end
    call('ZADD', P .. 'leases', time + this.number, this.client)
    return {OK, tonumber(call('GET', P .. 'epoch'))}
end
if not call('ZSCORE', P .. 'leases', this.client) then
    return {LOST, 0}
end
if what == 'renew' then
    call('ZADD', P .. 'leases', time + this.number, this.client)
    for _, client in ipairs(call('ZRANGEBYSCORE', P .. 'leases', '-inf', time, 'LIMIT', 0, 100)) do
        leave(client)
    end
    return {OK, next_end(time)}
elseif what == 'end' then
    end_holder(this.client, this.holder)
elseif what == 'cancel' then
    cancel(this.client, this.number, CANCELLED)
elseif what == 'late' then
    cancel(this.client, this.number, LATE)
elseif what == 'leave' then
    leave(this.client)
end
return answer
