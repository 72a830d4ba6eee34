# Windows of an image whose size and window come at run time: tiles are patches, one loop of boxes for each tile.
pattern near(a, b, size, kernel):
    let left = kernel // 2
    let first = clamp(a - left, 0, size - kernel)
    first <= b < first + kernel

pattern windows(height = 48, kernel = 7):
    near(q // 48, k // 48, height, kernel) and near(q % 48, k % 48, 48, kernel)
