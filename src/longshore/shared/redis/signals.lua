-- Events and barriers: many wait for one thing.

local event = {left = left}

event[30] = function(r) -- SET
    put(r.key, 'set', 1)
    local waiter = first('w', r.key)
    while waiter do
        reply(waiter, OK)
        waiter = first('w', r.key)
    end
end

event[31] = function(r) -- CLEAR
    forget(r.key, 'set')
end

event[32] = function(r) -- IS_SET
    reply(r, OK, get(r.key, 'set') and 1 or 0)
end

event[33] = function(r) -- AWAIT_SET
    if get(r.key, 'set') then
        reply(r, OK)
    else
        wait(r, 'w')
    end
end

kinds.E = event

local barrier = {}

local function break_barrier(key)
    put(key, 'broken', 1)
    local waiter = first('w', key)
    while waiter do
        reply(waiter, BROKEN)
        waiter = first('w', key)
    end
end

barrier[40] = function(r) -- ARRIVE
    local parties = size_of(r.key)
    if get(r.key, 'broken') then
        reply(r, BROKEN)
    elseif waiting('w', r.key) + 1 < parties then
        wait(r, 'w')
    else
        for place = 0, parties - 2 do
            reply(first('w', r.key), OK, place)
        end
        reply(r, OK, parties - 1)
    end
end

barrier[41] = function(r) -- ABORT
    break_barrier(r.key)
end

barrier[42] = function(r) -- RESET
    break_barrier(r.key)
    forget(r.key, 'broken')
end

barrier[43] = function(r) -- BARRIER_STATE
    reply(r, OK, waiting('w', r.key), get(r.key, 'broken') and '1' or '0')
end

-- One who is late, or dead, will never come: the others need not wait for him.
function barrier.left(r, status)
    left(r, status)
    if status ~= CANCELLED then
        break_barrier(r.key)
    end
end

kinds.B = barrier
