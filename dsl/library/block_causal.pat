# Causal over blocks of n positions, both ways inside a block.
# Source: inference of block diffusion, BD3-LM, arXiv:2503.09573, kuleshov-group/bd3lms.
pattern block_causal(n = 16):
    k // n <= q // n
