# Squeezed attention: of a fixed context only listed keys, per head, and all that follows it.
# kept[h, k]: does head h keep key k of the context?
# Source: arXiv:2411.09688, SqueezeAILab/SqueezedAttention.
pattern squeezed(context, kept: bool[head, *]):
    causal and (k >= context or kept[head, k])
