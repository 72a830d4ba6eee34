# Sparse Transformer, strided: a window, and every stride-th key back from the query.
# arXiv:1904.10509, the merged union; PATTERNS 4.3.
pattern sparse_strided(local = 128, stride = 128):
    causal and (q - k < local or (q - k) % stride == 0)
