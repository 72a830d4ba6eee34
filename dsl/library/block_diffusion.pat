# Block diffusion in training: a noisy copy of the sequence, then the sequence itself.
# Noisy blocks see themselves and the clean blocks before; clean blocks are causal.
# Source: BD3-LM, arXiv:2503.09573, kuleshov-group/bd3lms.
pattern block_diffusion(block = 16):
    let length = kv_len // 2
    let row = (if q < length then q else q - length) // block
    let column = (if k < length then k else k - length) // block
    if q < length then
        (if k < length then row == column else column < row) else
        k >= length and column <= row
