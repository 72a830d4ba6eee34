# SALE: the first block, the last ones before the diagonal, and listed blocks between, per head.
# keep[h, i, j] for blocks of `rows` queries and `columns` keys.
# Source: arXiv:2505.24179, BirdChristopher/SALE.
pattern sale(keep: bool[head, *, *], rows = 64, columns = 32):
    let row = q // rows
    let column = k // columns
    let count = (min((row + 1) * rows, kv_len) + columns - 1) // columns
    let free = max((count - 5) // 4 * 4, 0)
    causal and (column == 0 or column > free or keep[head, row, column])
