pattern p(w: int[head], doc: segments):
    let a = causal + 1
    let b = q and k
    let c = if q then causal else 3
    let d = (k < 3) == (q < 3)
    let e = window(causal) and document(w) and k < w
    let f = start(q, k) < b[3]
    q at (q, k)
