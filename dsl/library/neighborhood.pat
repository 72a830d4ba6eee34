# Neighborhood attention on an image in raster order: kernel x kernel keys around the query.
# kernel * dilation <= height, width.
# Source: NATTEN, arXiv:2204.07143, SHI-Labs/NATTEN; strides: arXiv:2504.16922.
pattern near(a, b, size, kernel, stride, dilation):
    let length = (size - a % dilation + dilation - 1) // dilation
    let left = kernel // 2
    let right = kernel - 1 - left
    let leader = min(a // dilation // stride * stride + stride // 2, length - 1)
    let centre = clamp(leader, left, length - 1 - right)
    a % dilation == b % dilation and centre - left <= b // dilation <= centre + right

pattern neighborhood(height = 64, width = 64, kernel = 13, stride = 1, dilation = 1):
    near(q // width, k // width, height, kernel, stride, dilation) and
        near(q % width, k % width, width, kernel, stride, dilation)
