# FlexPrefill: listed block columns and diagonals, or listed blocks for query-aware heads.
# columns[h, j]; diagonals[h, d] for d = row - column; keep[h, i, j].
# Source: arXiv:2502.20766, bytedance/FlexPrefill.
pattern flexprefill(columns: bool[head, *], diagonals: bool[head, *], keep: bool[head, *, *],
        block = 128):
    let row = q // block
    let column = k // block
    causal and (columns[head, column] or diagonals[head, row - column] or keep[head, row, column])
