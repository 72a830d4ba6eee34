# A progression: every eighth block of keys, beside a local window.
local_strided(64, 16, 8)
