let a = q // 0 == 1 or q % (3 - 4) == 1
let b = chunked(0) or chunks_back(m = 1, n = 4 - 4)
let c = cover(0, 64, causal)
a or b or c
