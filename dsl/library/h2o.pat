# H2O: the most recent keys and listed heavy hitters, per head.
# heavy[b, h, k]: does head h keep key k for the queries of this call?
# Source: arXiv:2306.14048, FMInference/H2O; `recent` is a tenth of the length there.
pattern h2o(heavy: bool[batch, head, *], recent = 512):
    causal and (q - k < recent or heavy[batch, head, k])
