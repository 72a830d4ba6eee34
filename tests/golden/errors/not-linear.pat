pattern p(w: int[head]):
    let a = q * k < 3
    let b = head * (q - k) < 8
    let c = kv_len * q < 8
    let d = w[head] * q < 8
    a and b and c and d and q * q < 3
