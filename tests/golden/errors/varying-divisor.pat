pattern p(w: int[head]):
    let a = q // k == 1
    let b = q % (head + 1) == 0
    let c = chunked(w[head])
    a and b and c
