# Causal over blocks of n positions, both ways inside a block.
# Inference of block diffusion, BD3-LM (arXiv:2503.09573); PATTERNS 8.3.
pattern block_causal(n = 16):
    k // n <= q // n
