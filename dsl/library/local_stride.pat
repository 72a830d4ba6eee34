# Causal blocks: the nearest `local` ones, and every stride-th one, shifted from head to head.
# Source: Phi-3-small, arXiv:2404.14219, as linxihui/dkernel counts it; vLLM has offset = 1 and steps by query head.
pattern local_stride(block = 64, local = 16, stride = 8, offset = 0):
    let step = max(1, stride // heads)
    causal and
        (q // block - k // block < local or (k // block + kv_head * step + offset) % stride == 0)
