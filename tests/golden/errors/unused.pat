# Legal, so these are warnings.
pattern p(n, m = 4, w: int[head]):
    let distance = q - k
    let twice = 2 * n
    causal and k < n
