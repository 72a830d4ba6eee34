# Landmark attention's inference: the query's own block, and listed blocks before it.
# keep[b, h, q, j]: does the token at position q see block j? In training the weights of blocks and of keys in them are two
# softmaxes, which is no mask.
# Source: arXiv:2305.16300, epfml/landmark-attention.
pattern landmark(keep: bool[batch, head, *, *], block = 51):
    causal and (chunked(block) or keep[batch, head, q, k // block])
