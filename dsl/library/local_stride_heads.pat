# `local_stride`, and the last key/value heads causal.
# Source: arXiv:2404.14219, linxihui/dkernel, `num_dense_heads`.
pattern local_stride_heads(dense = 1, block = 64, local = 16, stride = 8, offset = 0):
    if kv_head >= kv_heads - dense then causal else local_stride(block, local, stride, offset)
