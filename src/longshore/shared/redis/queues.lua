-- Queues: a stream of items, whose consumer group knows what was delivered to whom and is not acknowledged.
--
-- s:KEY is the stream of items that were never delivered, or are at their holder's.  What comes back goes to the front,
-- which a stream has not: f:KEY is a list of those, each `count item`, with how often it was delivered.  Delivered
-- again, it becomes an entry of the stream b:KEY, which has no others than such as are at their holder's.
-- A consumer is a holder, `client holder`.  A delivery is the number of its entry, doubled, plus 1 for b; o:KEY has under
-- `d` and that the order in which it was made.

local GROUP = 'longshore'
local queue = {left = left}

local function stream(which, key)
    return P .. which .. ':' .. key
end

function queue.declared(key)
    call('XGROUP', 'CREATE', stream('s', key), GROUP, '0', 'MKSTREAM')
    call('XGROUP', 'CREATE', stream('b', key), GROUP, '0', 'MKSTREAM')
    put(key, 'ready', 0, 'unfinished', 0)
end

local function accept(r)
    local n = grow(r.key, 'last', 1)
    call('XADD', stream('s', r.key), n .. '-0', 'v', r.field)
    grow(r.key, 'ready', 1)
    grow(r.key, 'unfinished', 1)
    reply(r, OK)
end

local function read(which, key, consumer, ...)
    local found = call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', 1, ...)
    return found[1][2][1]
end

local function delivery_of(which, id)
    return tonumber(string.match(id, '^%d+')) * 2 + (which == 'b' and 1 or 0)
end

local function hand(r)
    local key = r.key
    grow(key, 'ready', -1)
    local item, count = call('LPOP', stream('f', key)), '0'
    if item then
        count, item = string.match(item, '^(%d+) (.*)$')
    end
    if r.number == '0' then
        if not item then
            local entry = read('s', key, '-', 'NOACK', 'STREAMS', stream('s', key), '>')
            call('XDEL', stream('s', key), entry[1])
            item = entry[2][2]
        end
        reply(r, OK, 0, item, count)
        return
    end
    local which = 's'
    if item then
        which = 'b'
        call('XADD', stream('b', key), grow(key, 'last', 1) .. '-0', 'v', item, 'count', count)
    end
    local entry = read(which, key, r.client .. ' ' .. r.holder, 'STREAMS', stream(which, key), '>')
    local delivery = delivery_of(which, entry[1])
    put(key, 'd' .. delivery, next_number())
    reply(r, OK, delivery, entry[2][2], count)
    hold(r.client, r.holder, key)
end

-- Bring items and getters, room and putters together.
local function pump(key)
    local maxsize = size_of(key)
    while true do
        local ready = tonumber(get(key, 'ready'))
        local r = ready > 0 and first('g', key)
        if r then
            hand(r)
        else
            r = ready < maxsize and first('p', key)
            if not r then
                return
            end
            accept(r)
        end
    end
end

local function back(key, item, count)
    call('LPUSH', stream('f', key), count .. ' ' .. item)
    grow(key, 'ready', 1)
end

local function done_one(key)
    if grow(key, 'unfinished', -1) == 0 then
        local r = first('j', key)
        while r do
            reply(r, OK)
            r = first('j', key)
        end
    end
end

local function pending(which, key, consumer)
    return call('XPENDING', stream(which, key), GROUP, '-', '+', 1, consumer)[1]
end

local function remove(which, key, id)
    local fields = call('XRANGE', stream(which, key), id, id)[1][2]
    call('XACK', stream(which, key), GROUP, id)
    call('XDEL', stream(which, key), id)
    forget(key, 'd' .. delivery_of(which, id))
    return fields[2], (fields[4] or 0) + 1
end

local function retire(key, consumer)
    call('XGROUP', 'DELCONSUMER', stream('s', key), GROUP, consumer)
    call('XGROUP', 'DELCONSUMER', stream('b', key), GROUP, consumer)
end

-- Take a delivery off its holder's list: the item, and how often it was delivered; nil if there is none of this client.
local function settle(r)
    local key, delivery = r.key, tonumber(r.number)
    local which = delivery % 2 == 1 and 'b' or 's'
    local id = math.floor(delivery / 2) .. '-0'
    local entry = call('XPENDING', stream(which, key), GROUP, id, id, 1)[1]
    local client, holder = string.match(entry and entry[2] or '', '^(%S+) (%S+)$')
    if client ~= r.client then
        reply(r, NOT_HELD)
        return nil
    end
    local item, count = remove(which, key, id)
    if not pending('s', key, entry[2]) and not pending('b', key, entry[2]) then
        retire(key, entry[2])
        let_go(client, holder, key)
    end
    return item, count
end

queue[50] = function(r) -- PUT
    local maxsize = size_of(r.key)
    if maxsize > 0 and tonumber(get(r.key, 'ready')) >= maxsize then
        wait(r, 'p')
    else
        accept(r)
        pump(r.key)
    end
end

queue[51] = function(r) -- GET
    if tonumber(get(r.key, 'ready')) > 0 then
        hand(r)
        pump(r.key)
    else
        wait(r, 'g')
    end
end

queue[52] = function(r) -- UNGET
    back(r.key, r.field, 0)
    pump(r.key)
end

queue[53] = function(r) -- ACK
    if settle(r) then
        done_one(r.key)
    end
end

queue[54] = function(r) -- REQUEUE
    local item, count = settle(r)
    if item then
        back(r.key, item, count)
        pump(r.key)
    end
end

queue[55] = function(r) -- TASK_DONE
    if get(r.key, 'unfinished') == '0' then
        reply(r, NOT_HELD)
    else
        done_one(r.key)
    end
end

queue[56] = function(r) -- JOIN
    if get(r.key, 'unfinished') == '0' then
        reply(r, OK)
    else
        wait(r, 'j')
    end
end

queue[57] = function(r) -- SIZE
    reply(r, OK, tonumber(get(r.key, 'ready')), get(r.key, 'unfinished'))
end

-- What a holder that has ended did not acknowledge goes back to the front, in the order in which it was delivered.
function queue.released(client, holder, key)
    local consumer, found = client .. ' ' .. holder, {}
    for _, which in ipairs({'s', 'b'}) do
        for _, entry in ipairs(call('XPENDING', stream(which, key), GROUP, '-', '+', 1000000, consumer)) do
            local order = tonumber(get(key, 'd' .. delivery_of(which, entry[1])))
            found[#found + 1] = {order, which, entry[1]}
        end
    end
    table.sort(found, function(one, other) return one[1] > other[1] end)
    for _, entry in ipairs(found) do
        back(key, remove(entry[2], key, entry[3]))
    end
    retire(key, consumer)
    pump(key)
end

-- What was sent to one who is gone, and whom nobody asks for an acknowledgement.
function queue.undone(key, verb, number, item, count)
    if verb == 51 and number == '0' then
        back(key, item, count)
        pump(key)
    end
end

kinds.Q = queue
