# Sparse Transformer, fixed: the query's own context, and the last columns of every context.
# The merged union. A context has context // block columns of `block` keys; the heads take turns at `verticals` groups of
# `width` columns, from the last one back.
# Source: arXiv:1904.10509, openai/sparse_attention.
pattern sparse_fixed(context = 128, block = 32, verticals = 4, width = 1):
    let columns = context // block
    let from_last = columns - 1 - k // block % columns
    causal and (chunked(context) or from_last // width == head % verticals)
