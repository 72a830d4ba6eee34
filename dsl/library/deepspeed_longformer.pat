# DeepSpeed's BSLongformer: a window of blocks, and global blocks anywhere.
# globals[i]: is block i a global one? Not causal by itself.
# Source: BSLongformerSparsityConfig of deepspeedai/DeepSpeed.
pattern deepspeed_longformer(globals: bool[*], block = 16, window = 3):
    let row = q // block
    let column = k // block
    abs(row - column) <= window // 2 or globals[row] or globals[column]
