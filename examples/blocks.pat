# Block diffusion at inference: both ways inside a block, causal between blocks.
pattern blocks_in_order(size = 32):
    block_causal(size)
