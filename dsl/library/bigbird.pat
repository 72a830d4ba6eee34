# BigBird: a window of three blocks, the first and the last block as global ones, and random blocks.
# random[h, i, j]: does block row i see block j? `patterncc.selection.bigbird_random` draws such a plan.
# Source: arXiv:2007.14062, the block-sparse form of Hugging Face transformers.
pattern bigbird(block = 64, random: bool[head, *, *]):
    let row = q // block
    let column = k // block
    let last = (kv_len - 1) // block
    row in {0, last} or column in {0, last} or abs(row - column) <= 1 or random[head, row, column]
