# Swin: square windows on an image in raster order, shifted by half a window in odd layers.
# `height` and `width` are multiples of `window`. Swin rolls the image and then masks what comes from both sides of the
# edge; what is left is a grid that begins half a window earlier.
# Source: arXiv:2103.14030, microsoft/Swin-Transformer.
pattern same(a, b, window, shift):
    (a - shift) // window == (b - shift) // window

pattern swin(height = 56, width = 56, window = 7):
    let plain = same(q // width, k // width, window, 0) and same(q % width, k % width, window, 0)
    let shift = window // 2
    let shifted = same(q // width, k // width, window, shift) and
        same(q % width, k % width, window, shift)
    if layer % 2 == 1 and window < min(height, width) then shifted else plain
