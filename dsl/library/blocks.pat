# Listed blocks, per head: keep[h, i, j] says whether block row i sees block j.
# Block-sparse attention of MInference, XAttention and others; PATTERNS 5. Not causal by itself.
pattern blocks(size = 64, keep: bool[head, *, *]):
    keep[head, q // size, k // size]
