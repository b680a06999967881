-- Topics: t:KEY are its subscriptions; u:NUMBER is one, and y:NUMBER what waits for it.

local topic = {left = left}

local function end_subscription(number, key)
    call('SREM', P .. 't:' .. key, number)
    call('DEL', P .. 'u:' .. number, P .. 'y:' .. number)
    local r = first(number, key)
    while r do
        reply(r, CLOSED)
        r = first(number, key)
    end
end

local function hand_values(number, r)
    local values = P .. 'y:' .. number
    local state = call('HMGET', P .. 'u:' .. number, 'missed', 'size', 'max')
    local missed = tonumber(state[1])
    if tonumber(state[2]) <= tonumber(state[3]) then
        local found = call('LRANGE', values, 0, 4095)
        local size = 0
        for i = 1, #found do
            size = size + #found[i]
        end
        call('LTRIM', values, #found, -1)
        call('HINCRBY', P .. 'u:' .. number, 'size', -size)
        reply(r, OK, missed, unpack(found))
    else
        local value = call('LPOP', values)
        call('HINCRBY', P .. 'u:' .. number, 'size', -#value)
        reply(r, OK, missed, value)
    end
end

topic[60] = function(r) -- PUBLISH
    local took = 0
    for _, number in ipairs(call('SMEMBERS', P .. 't:' .. r.key)) do
        local state = call('HMGET', P .. 'u:' .. number, 'room', 'closes')
        if call('LLEN', P .. 'y:' .. number) < tonumber(state[1]) then
            call('RPUSH', P .. 'y:' .. number, r.field)
            call('HINCRBY', P .. 'u:' .. number, 'size', #r.field)
            took = took + 1
            local reader = first(number, r.key)
            if reader then
                hand_values(number, reader)
            end
        elseif state[2] == '1' then
            end_subscription(number, r.key)
        else
            call('HINCRBY', P .. 'u:' .. number, 'missed', 1)
        end
    end
    reply(r, OK, took)
end

topic[61] = function(r) -- SUBSCRIBE; field 1 besides: the bytes that one reply may have
    local number = next_number()
    local room = math.max(1, tonumber(r.number))
    local closes = r.field == 'close' and 1 or 0
    call('HSET', P .. 'u:' .. number, 'client', r.client, 'room', room, 'closes', closes, 'missed', 0, 'size', 0,
        'max', fields[2])
    call('SADD', P .. 't:' .. r.key, number)
    watch(r.client, r.key)
    reply(r, OK, number)
end

topic[62] = function(r) -- UNSUBSCRIBE
    end_subscription(r.number, r.key)
end

topic[63] = function(r) -- RECEIVE
    local client = call('HGET', P .. 'u:' .. r.number, 'client')
    if not client then
        reply(r, CLOSED)
        return
    end
    if client ~= r.client then
        -- A child that was forked goes on with it.
        call('HSET', P .. 'u:' .. r.number, 'client', r.client)
        watch(r.client, r.key)
    end
    if call('EXISTS', P .. 'y:' .. r.number) == 1 then
        hand_values(r.number, r)
    else
        wait(r, r.number)
    end
end

function topic.gone(client, key)
    for _, number in ipairs(call('SMEMBERS', P .. 't:' .. key)) do
        if call('HGET', P .. 'u:' .. number, 'client') == client then
            end_subscription(number, key)
        end
    end
end

kinds.T = topic
