# Dilated window: n keys, every step-th one back from the query's own.
# Source: the causal form of Longformer's dilated window, arXiv:2004.05150.
pattern dilated(n = 512, step = 8):
    0 <= q - k < n * step and (q - k) % step == 0
