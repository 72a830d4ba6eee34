# MInference's vertical-slash as its kernel computes it: for each block of queries, the keys it loads.
# keep[h, i, k]: does block row i of head h see key k? `patterncc.selection.minference_kernel` makes it from verticals and
# slashes. A superset of `vertical_slash`.
# Source: arXiv:2407.02490, microsoft/MInference.
pattern minference(keep: bool[head, *, *], block = 64):
    causal and keep[head, q // block, k]
