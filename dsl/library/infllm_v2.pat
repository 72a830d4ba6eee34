# InfLLM-V2: the first block, the nearest ones, and listed blocks for each token.
# keep[b, h, q, j]: does the token at position q see block j? `local` counts the blocks before the query's own. Up to
# `dense` keys, it is causal.
# Source: arXiv:2509.24663, OpenBMB/infllmv2_cuda_impl.
pattern infllm_v2(keep: bool[batch, kv_head, *, *], block = 64, first = 1, local = 32,
        dense = 8192):
    let near = q // block - k // block <= local
    causal and
        (kv_len <= dense or k // block < first or near or keep[batch, kv_head, q, k // block])
