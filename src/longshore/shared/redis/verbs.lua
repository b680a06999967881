-- The end of a script of one family: it does the verb.

if not call('ZSCORE', P .. 'leases', this.client) then
    return {LOST, 0}
end
local kind = kinds[this.key:sub(1, 1)]
if this.verb == 1 then -- DECLARE
    local known = get(this.key, 'p')
    if not known then
        put(this.key, 'p', this.field)
        if kind.declared then
            kind.declared(this.key)
        end
    elseif known ~= this.field then
        reply(this, CONFLICT, 0, known)
    end
elseif not kind[this.verb] or not get(this.key, 'p') then
    reply(this, UNKNOWN)
else
    kind[this.verb](this)
end
return answer
