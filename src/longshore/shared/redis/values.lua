-- Dicts and counters: nobody waits for them.
--
-- Of a dict, v:KEY are the values, n:KEY the version of each, i:KEY the keys in order of insertion.  A counter is v:KEY,
-- and its numbers stay text, as those of Lua are exact to 53 bits only.

local CHUNK = 1000
local dict = {}

local function part(which, key)
    return P .. which .. ':' .. key
end

local function write(key, field, value, version)
    call('HSET', part('v', key), field, value)
    call('HSET', part('n', key), field, version)
    call('ZADD', part('i', key), 'NX', version, field)
end

dict[70] = function(r) -- READ
    local value = call('HGET', part('v', r.key), r.field)
    if value then
        reply(r, OK, tonumber(call('HGET', part('n', r.key), r.field)), value)
    else
        reply(r, ABSENT)
    end
end

dict[71] = function(r) -- WRITE
    for i = 8, #ARGV - 1, 2 do
        write(r.key, ARGV[i], ARGV[i + 1], grow(r.key, 'version', 1))
    end
end

dict[72] = function(r) -- WRITE_IF
    local version = call('HGET', part('n', r.key), r.field) or '0'
    if version == r.number then
        write(r.key, r.field, fields[2], grow(r.key, 'version', 1))
        reply(r, OK, 1)
    else
        reply(r, OK, 0)
    end
end

dict[73] = function(r) -- TAKE
    local value = call('HGET', part('v', r.key), r.field)
    if not value then
        reply(r, ABSENT)
        return
    end
    grow(r.key, 'version', 1)
    call('HDEL', part('v', r.key), r.field)
    call('HDEL', part('n', r.key), r.field)
    call('ZREM', part('i', r.key), r.field)
    reply(r, OK, 0, value)
end

dict[74] = function(r) -- WIPE
    grow(r.key, 'version', 1)
    call('DEL', part('v', r.key), part('n', r.key), part('i', r.key))
end

dict[75] = function(r) -- COUNT
    reply(r, OK, call('HLEN', part('v', r.key)))
end

dict[76] = function(r) -- LIST
    local keys = call('ZRANGE', part('i', r.key), 0, -1)
    answer = {OK, 0}
    for start = 1, #keys, CHUNK do
        local last = math.min(start + CHUNK - 1, #keys)
        local values = call('HMGET', part('v', r.key), unpack(keys, start, last))
        for i = start, last do
            answer[#answer + 1] = keys[i]
            answer[#answer + 1] = values[i - start + 1]
        end
    end
end

dict[77] = function(r) -- KEYS
    answer = call('ZRANGE', part('i', r.key), 0, -1)
    table.insert(answer, 1, 0)
    table.insert(answer, 1, OK)
end

kinds.D = dict

local counter = {}

counter[80] = function(r) -- ADD
    local result = redis.pcall('INCRBY', part('v', r.key), r.number)
    if type(result) == 'table' and result.err then
        reply(r, TOO_LARGE, 0, 'a counter has 64 bits')
    else
        reply(r, OK, call('GET', part('v', r.key)))
    end
end

counter[81] = function(r) -- ASSIGN
    call('SET', part('v', r.key), r.number)
end

counter[82] = function(r) -- VALUE
    reply(r, OK, call('GET', part('v', r.key)) or '0')
end

kinds.N = counter
