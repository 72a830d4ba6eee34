# Sliding tile attention: a window of whole tiles on a video in tile order, text at the end.
# `tile` tokens a tile; a canvas of depth x rows x columns tiles; the windows count tiles and are odd. The `text` tokens
# see all and are seen by all; padding after them is seen by none.
# Source: STA, arXiv:2502.04507, hao-ai-lab/FastVideo.
pattern near(a, b, size, window):
    abs(clamp(a, window // 2, size - 1 - window // 2) - b) <= window // 2

pattern sliding_tile(tile = 384, depth = 5, rows = 6, columns = 10, depth_window = 3,
        row_window = 3, column_window = 3, text = 0):
    let from = q // tile
    let to = k // tile
    let video = tile * depth * rows * columns
    let close = near(from // (rows * columns), to // (rows * columns), depth, depth_window) and
        near(from // columns % rows, to // columns % rows, rows, row_window) and
        near(from % columns, to % columns, columns, column_window)
    k < video + text and (q >= video or k >= video or close)
