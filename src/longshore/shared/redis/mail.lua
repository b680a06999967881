-- The end of the script of the mailbox: its client has taken all up to the id in field 0.

if not call('ZSCORE', P .. 'leases', this.client) then
    return {LOST, 0}
end
local ms, n = string.match(this.field, '^(%d+)-(%d+)$')
call('XTRIM', P .. 'm:' .. this.client, 'MINID', ms .. '-' .. (n + 1))
return answer
