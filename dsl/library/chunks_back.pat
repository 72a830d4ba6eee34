# Chunks of n positions, each attending to itself and the m whole chunks before it.
# Gecko's sliding chunk attention has n = 2048, m = 1; PATTERNS 3.6. Not causal by itself.
pattern chunks_back(n = 2048, m = 1):
    0 <= q // n - k // n <= m
