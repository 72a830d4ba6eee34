# Causal, and only listed blocks, per head.
# keep[h, i, j]: does block row i see block j? `patterncc.selection.block_topk` chooses as MInference's
# block-sparse heads do, whose size is 64.
# Source: XAttention, arXiv:2503.16428, mit-han-lab/x-attention; block-sparse heads of microsoft/MInference.
pattern causal_blocks(keep: bool[head, *, *], size = 128):
    causal and blocks(size, keep)
