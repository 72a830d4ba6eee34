let a = causal and prefix
let b = window(1, 2) or window(m = 3)
let c = streaming(sinks = 1, 2) or streaming(1, sinks = 2)
let d = min(q) + abs(q, k) + clamp(x = 1, 2, 3)
a and b and c and d < 3
