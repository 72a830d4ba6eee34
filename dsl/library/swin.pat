# Swin: square windows on an image in raster order, shifted by half a window in odd layers.
# arXiv:2103.14030; PATTERNS 9.2. `height` and `width` are multiples of `window`.
pattern same(a, b, size, window, shift):
    # Shifted around the edge, in the same window, and not from both sides of the edge.
    let from = (a - shift) % size
    let to = (b - shift) % size
    from // window == to // window and (from + shift) // size == (to + shift) // size

pattern swin(height = 56, width = 56, window = 7):
    let shift = if layer % 2 == 1 and window < min(height, width) then window // 2 else 0
    same(q // width, k // width, height, window, shift) and
        same(q % width, k % width, width, window, shift)
