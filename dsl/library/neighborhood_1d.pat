# Neighborhood attention in one dimension: `kernel` keys around the query, moved inwards at the ends.
# kernel * dilation <= kv_len.
# Source: NATTEN, arXiv:2204.07143, SHI-Labs/NATTEN; strides: arXiv:2504.16922.
pattern near(a, b, size, kernel, stride, dilation):
    let length = (size - a % dilation + dilation - 1) // dilation
    let left = kernel // 2
    let right = kernel - 1 - left
    let leader = min(a // dilation // stride * stride + stride // 2, length - 1)
    let centre = clamp(leader, left, length - 1 - right)
    a % dilation == b % dilation and centre - left <= b // dilation <= centre + right

pattern neighborhood_1d(kernel = 127, stride = 1, dilation = 1):
    near(q, k, kv_len, kernel, stride, dilation)
