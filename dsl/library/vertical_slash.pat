# Causal: listed keys (verticals) and listed distances (slashes), per head.
# The ideal form; `minference` is what its kernel computes. verticals[h, k]: is key k seen by all? slashes[h, d]: are keys at
# distance d? `patterncc.selection.vertical_slash` chooses them.
# Source: MInference, arXiv:2407.02490, microsoft/MInference.
pattern vertical_slash(verticals: bool[head, *], slashes: bool[head, *]):
    causal and (verticals[head, k] or slashes[head, q - k])
