# Sparse Transformer, the fixed form: the query's own context, and the last columns of every context before it.
pattern columns(context = 128, width = 32):
    let last_column = k % context >= context - width
    causal and (chunked(context) or last_column)
