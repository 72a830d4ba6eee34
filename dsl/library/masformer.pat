# MASFormer: the first layers causal, the others causal blocks.
# That full attention is at the bottom, and that a block sees only itself, is from a review of the paper.
# Source: arXiv:2310.12442.
pattern masformer(first = 4, block = 1024):
    causal and (layer < first or chunked(block))
