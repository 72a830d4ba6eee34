# Block streaming: sinks and a window in whole blocks, the window moving a block at a time.
# It counts the diagonal block, so a query has (local - 1) * block + 1 to local * block keys of its window.
# Source: arXiv:2410.10819, the streaming heads of mit-han-lab/Block-Sparse-Attention.
pattern block_streaming(block = 128, sinks = 1, local = 2):
    causal and (k // block < sinks or q // block - k // block < local)
