# Every n-th key counted from the query, both ways.
# The strided half of the Sparse Transformer (arXiv:1904.10509); PATTERNS 4.3. Not causal by itself.
pattern strided(n = 128):
    (q - k) % n == 0
