# DeepSpeed's Variable: windows of given lengths, global blocks and random blocks, per head.
# The windows are given as `segments` in tokens, multiples of the block. columns[h, j]: do all see block j?
# random[h, i, j]: does block row i see block j? Not causal by itself.
# Source: VariableSparsityConfig of deepspeedai/DeepSpeed.
pattern deepspeed_variable(windows: segments, columns: bool[head, *], random: bool[head, *, *],
        block = 16):
    windows[q] == windows[k] or columns[head, k // block] or random[head, q // block, k // block]
