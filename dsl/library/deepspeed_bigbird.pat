# DeepSpeed's BigBird: a window of blocks, global blocks at the start, and random blocks, per head.
# random[h, i, j]: does block row i see block j? Not causal by itself.
# Source: BigBirdSparsityConfig of deepspeedai/DeepSpeed.
pattern deepspeed_bigbird(random: bool[head, *, *], block = 16, window = 3, globals = 1):
    let row = q // block
    let column = k // block
    abs(row - column) <= window // 2 or
        row < globals or
        column < globals or
        random[head, row, column]
