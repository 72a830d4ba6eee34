pattern layer(q, kv_len, scale): k < 3
pattern min():
    let head = 3
    k < head
