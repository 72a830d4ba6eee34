# Blocks both ways: the nearest on each side, and every stride-th one beyond them.
# Source: the two-way form of linxihui/dkernel, arXiv:2404.14219.
pattern local_stride_both(block = 64, left = 16, right = 16, stride = 8):
    let ahead = q // block - k // block
    (max(0, ahead - left + 1) + max(0, -ahead - right + 1)) % stride == 0
