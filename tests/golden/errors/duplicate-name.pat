pattern a(n, n): k < n
pattern b(n):
    let n = 3
    let m = n
    let m = 4
    k < m
pattern a(): causal
