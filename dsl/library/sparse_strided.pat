# Sparse Transformer, strided: a window, and every stride-th key back from the query.
# The merged union.
# Source: arXiv:1904.10509, openai/sparse_attention.
pattern sparse_strided(local = 128, stride = 128):
    causal and (q - k < local or (q - k) % stride == 0)
