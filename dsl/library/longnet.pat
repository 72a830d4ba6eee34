# One branch of LongNet: every ratio-th position of a segment, in a phase of the head.
# Phases as torchscale has them. Its mask is a union of branches, such as `longnet(2048, 1) or longnet(4096, 2)`; LongNet
# counts a key once for every branch it is in, a union counts it once.
# Source: arXiv:2307.02486, microsoft/torchscale.
pattern longnet(segment = 4096, ratio = 2):
    let phase = head // ((heads + ratio - 1) // ratio)
    causal and chunked(segment) and q % segment % ratio == phase and k % segment % ratio == phase
