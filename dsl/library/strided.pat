# Every n-th key counted from the query, both ways.
# Not causal by itself.
# Source: the strided half of the Sparse Transformer, arXiv:1904.10509.
pattern strided(n = 128):
    (q - k) % n == 0
