# Neighborhood attention in one dimension, causal: `kernel` keys up to the stride's leader.
# kernel * dilation <= kv_len.
# Source: NATTEN, arXiv:2204.07143, SHI-Labs/NATTEN; strides: arXiv:2504.16922.
pattern near(a, b, size, kernel, stride, dilation):
    let length = (size - a % dilation + dilation - 1) // dilation
    let leader = min(a // dilation // stride * stride + stride - 1, length - 1)
    a % dilation == b % dilation and
        b // dilation <= a // dilation and
        leader - b // dilation < kernel

pattern neighborhood_causal(kernel = 127, stride = 1, dilation = 1):
    near(q, k, kv_len, kernel, stride, dilation)
