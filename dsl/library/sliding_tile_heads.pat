# Sliding tile attention with a window of its own for each head of each layer.
# depth_window[l, h] and so on count tiles and are odd; the rest is as in `sliding_tile`.
# Source: STA, arXiv:2502.04507, hao-ai-lab/FastVideo, whose searched windows also differ by denoising step.
pattern near(a, b, size, half):
    abs(clamp(a, half, size - 1 - half) - b) <= half

pattern sliding_tile_heads(depth_window: int[layer, head], row_window: int[layer, head],
        column_window: int[layer, head], tile = 384, depth = 5, rows = 6, columns = 10, text = 0):
    let from = q // tile
    let to = k // tile
    let area = rows * columns
    let video = tile * depth * area
    let close = near(from // area, to // area, depth, depth_window[layer, head] // 2) and
        near(from // columns % rows, to // columns % rows, rows, row_window[layer, head] // 2) and
        near(from % columns, to % columns, columns, column_window[layer, head] // 2)
    k < video + text and (q >= video or k >= video or close)
