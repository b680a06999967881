-- Pipes: two ends, each with an inbox of whole messages, i:END:KEY, and the handles of each client, e:END:KEY.

local ROOM = 1048576
local pipe = {left = left}

local function inbox(side, key)
    return P .. 'i:' .. side .. ':' .. key
end

local function is_gone(side, key)
    return get(key, 'opened' .. side) and call('EXISTS', P .. 'e:' .. side .. ':' .. key) == 0
end

local function is_empty(side, key)
    return call('EXISTS', inbox(side, key)) == 0
end

local function hand_message(side, r)
    local message = call('LPOP', inbox(side, r.key))
    grow(r.key, 'size' .. side, -#message)
    reply(r, OK, 0, message)
end

local function deliver(side, r)
    call('RPUSH', inbox(side, r.key), r.field)
    grow(r.key, 'size' .. side, #r.field)
    reply(r, OK)
end

local function has_room(side, key)
    return tonumber(get(key, 'size' .. side) or '0') < ROOM
end

local function pump_pipe(side, key)
    while true do
        local r = not is_empty(side, key) and first('t' .. side, key)
        if r then
            hand_message(side, r)
        else
            r = has_room(side, key) and first('s' .. side, key)
            if not r then
                break
            end
            deliver(side, r)
        end
    end
    local poller = not is_empty(side, key) and first('p' .. side, key)
    while poller do
        reply(poller, OK)
        poller = first('p' .. side, key)
    end
end

local function all(line, key, status)
    local r = first(line, key)
    while r do
        reply(r, status)
        r = first(line, key)
    end
end

local function end_gone(side, key)
    if is_gone(side, key) then
        local other = 1 - side
        -- Lines are named by the inbox they wait for: the other's takers, and those who send to this one.
        all('t' .. other, key, CLOSED)
        all('s' .. side, key, CLOSED)
        all('p' .. other, key, OK)
    end
end

pipe[90] = function(r) -- OPEN
    call('HINCRBY', P .. 'e:' .. r.number .. ':' .. r.key, r.client, 1)
    put(r.key, 'opened' .. r.number, 1)
    watch(r.client, r.key)
end

pipe[91] = function(r) -- HANG_UP
    local handles = P .. 'e:' .. r.number .. ':' .. r.key
    if call('HEXISTS', handles, r.client) == 1 and call('HINCRBY', handles, r.client, -1) < 1 then
        call('HDEL', handles, r.client)
        end_gone(tonumber(r.number), r.key)
    end
end

pipe[92] = function(r) -- SEND
    local other = 1 - tonumber(r.number)
    if is_gone(other, r.key) then
        reply(r, CLOSED)
    elseif has_room(other, r.key) then
        deliver(other, r)
        pump_pipe(other, r.key)
    else
        wait(r, 's' .. other)
    end
end

pipe[93] = function(r) -- TAKE_MESSAGE
    local side = tonumber(r.number)
    if not is_empty(side, r.key) then
        hand_message(side, r)
        pump_pipe(side, r.key)
    elseif is_gone(1 - side, r.key) then
        reply(r, CLOSED)
    else
        wait(r, 't' .. side)
    end
end

local function unsend(side, key, message)
    call('LPUSH', inbox(side, key), message)
    grow(key, 'size' .. side, #message)
    pump_pipe(tonumber(side), key)
end

pipe[94] = function(r) -- UNSEND
    unsend(r.number, r.key, r.field)
end

function pipe.undone(key, verb, number, message)
    if verb == 93 then
        unsend(number, key, message)
    end
end

pipe[95] = function(r) -- POLL
    local side = tonumber(r.number)
    if is_empty(side, r.key) and not is_gone(1 - side, r.key) then
        wait(r, 'p' .. side)
    else
        reply(r, OK)
    end
end

function pipe.gone(client, key)
    for side = 0, 1 do
        if call('HDEL', P .. 'e:' .. side .. ':' .. key, client) == 1 then
            end_gone(side, key)
        end
    end
end

kinds.P = pipe
