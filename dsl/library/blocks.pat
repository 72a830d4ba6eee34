# Listed blocks, per head: keep[h, i, j] says whether block row i sees block j.
# Not causal by itself.
# Source: the form that BSR and CSR masks, and FlexAttention's BlockMask, come in.
pattern blocks(size = 64, keep: bool[head, *, *]):
    keep[head, q // size, k // size]
