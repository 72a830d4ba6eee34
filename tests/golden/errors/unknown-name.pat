let a = casual and windw(256)
let b = q_idx - k < num_heads
let c = w[head] < q_offset
a and b and c and xyzzy
