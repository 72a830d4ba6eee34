# NSA's selected branch: listed blocks for each token and key/value head.
# keep[b, h, q, j]: does the token at position q see block j? NSA adds the results of three softmaxes; the others are over
# compressed keys and `window(512)`.
# Source: arXiv:2502.11089, fla-org/native-sparse-attention.
pattern nsa(keep: bool[batch, kv_head, *, *], block = 64):
    causal and keep[batch, kv_head, q, k // block]
