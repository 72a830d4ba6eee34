# HiP: sinks, a window, and listed blocks of keys for each block of queries, per head.
# keep[h, i, j] for blocks of `rows` queries and `columns` keys. The dense layers of its configurations are left to a caller.
# Source: arXiv:2406.09827, arXiv:2502.08910, DeepAuto-AI/hip-attention.
pattern hip(keep: bool[head, *, *], rows = 64, columns = 8, sinks = 256, window = 512):
    streaming(sinks, window) or causal and keep[head, q // rows, k // columns]
