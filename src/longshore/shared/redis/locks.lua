-- Locks, semaphores and conditions: who holds, who waits, and which fence comes next.

local function grant(r)
    local key = r.key
    local recovered = call('HDEL', P .. 'o:' .. key, 'recovered') == 1
    put(key, 'owner', r.client .. ' ' .. r.holder)
    local fence = call('INCR', P .. 'fence')
    if r.verb == 20 then
        reply(r, OK, fence, recovered and '1' or '', r.outcome)
    elseif recovered then
        reply(r, OK, fence, '1')
    else
        reply(r, OK, fence)
    end
    -- After the reply, which lets go of the waiting.
    hold(r.client, r.holder, key)
end

local function free(key, recovered)
    forget(key, 'owner')
    if recovered then
        put(key, 'recovered', 1)
    end
    local r = first('w', key)
    if r then
        grant(r)
    end
end

local function is_owner(r)
    return get(r.key, 'owner') == r.client .. ' ' .. r.holder
end

local lock = {left = left}

lock[10] = function(r) -- ACQUIRE
    if get(r.key, 'owner') then
        wait(r, 'w')
    else
        grant(r)
    end
end

lock[11] = function(r) -- RELEASE
    if is_owner(r) then
        let_go(r.client, r.holder, r.key)
        free(r.key)
    end
end

lock[12] = function(r) -- LOCKED
    reply(r, OK, get(r.key, 'owner') and 1 or 0)
end

function lock.released(client, holder, key)
    if get(key, 'owner') == client .. ' ' .. holder then
        free(key, true)
    end
end

kinds.L, kinds.R = lock, lock

local condition = {[10] = lock[10], [11] = lock[11], [12] = lock[12], released = lock.released}

local function want_lock(r, outcome)
    r.outcome = outcome
    enter(r, 'w')
end

local function notify(key, count)
    local woken = 0
    while woken ~= count do
        local r = first('s', key)
        if not r then
            break
        end
        want_lock(r, '1')
        woken = woken + 1
    end
    return woken
end

condition[20] = function(r) -- WAIT
    if not is_owner(r) then
        reply(r, NOT_HELD)
        return
    end
    let_go(r.client, r.holder, r.key)
    if r.patient then
        enter(r, 's')
    else
        -- It comes back at once, but others who want the lock are before it.
        want_lock(r, '0')
    end
    r.here = nil
    free(r.key)
end

condition[21] = function(r) -- NOTIFY
    if is_owner(r) then
        reply(r, OK, notify(r.key, tonumber(r.number)))
    else
        reply(r, NOT_HELD)
    end
end

-- Whoever stops sleeping comes back with the lock; a notification that nobody has used goes on.
function condition.left(r, status)
    if r.verb ~= 20 then
        left(r, status)
        return
    end
    if status == LATE and r.outcome ~= '' then
        -- The client's clock does not know that it was woken already: it keeps its place.
        call('ZADD', P .. 'l:w' .. r.key, r.score, r.client .. ' ' .. r.holder .. ' ' .. r.id)
        return
    end
    local notified = r.outcome == '1'
    if status == CANCELLED then
        want_lock(r, r.outcome == '0' and '0' or 'c')
    elseif status then
        want_lock(r, '0')
    end
    if notified then
        notify(r.key, 1)
    end
    if not get(r.key, 'owner') then
        free(r.key)
    end
end

-- One who was notified, and got the lock, but is gone before he knew.
function condition.undone(key, verb, _, _, outcome)
    if verb == 20 and outcome == '1' then
        notify(key, 1)
        if not get(key, 'owner') then
            free(key)
        end
    end
end

kinds.C = condition

-- A semaphore keeps its free slots in `free`, and how many each holder has under `h` and its name.  One of no slots is a
-- signal, which nobody holds.
local semaphore = {left = left}

local function slots(r)
    return 'h' .. r.client .. ' ' .. r.holder
end

local function grant_slot(r)
    grow(r.key, 'free', -1)
    reply(r, OK, 0)
    if size_of(r.key) > 0 then
        grow(r.key, slots(r), 1)
        hold(r.client, r.holder, r.key)
    end
end

local function free_slots(key, count)
    local available = grow(key, 'free', count)
    while available > 0 do
        local r = first('w', key)
        if not r then
            break
        end
        grant_slot(r)
        available = available - 1
    end
end

function semaphore.declared(key)
    put(key, 'free', size_of(key))
end

semaphore[10] = function(r) -- ACQUIRE
    if tonumber(get(r.key, 'free')) > 0 then
        grant_slot(r)
    else
        wait(r, 'w')
    end
end

semaphore[11] = function(r) -- RELEASE
    if size_of(r.key) == 0 then
        free_slots(r.key, 1)
        return
    end
    local held = tonumber(get(r.key, slots(r)) or '0')
    if held > 0 then
        if held == 1 then
            forget(r.key, slots(r))
            let_go(r.client, r.holder, r.key)
        else
            grow(r.key, slots(r), -1)
        end
        free_slots(r.key, 1)
    end
end

semaphore[12] = function(r) -- LOCKED
    reply(r, OK, tonumber(get(r.key, 'free')))
end

function semaphore.released(client, holder, key)
    local field = 'h' .. client .. ' ' .. holder
    local held = tonumber(get(key, field) or '0')
    forget(key, field)
    free_slots(key, held)
end

-- A signal that was sent to one who never read it goes to another.
function semaphore.undone(key, verb)
    if verb == 10 and size_of(key) == 0 then
        free_slots(key, 1)
    end
end

kinds.S = semaphore
