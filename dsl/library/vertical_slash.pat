# Causal: listed keys (verticals) and listed distances (slashes), per head.
# MInference (arXiv:2407.02490), the ideal form; PATTERNS 5.1. verticals[h, k]: is key k seen by all? slashes[h, d]: are
# keys at distance d?
pattern vertical_slash(verticals: bool[head, *], slashes: bool[head, *]):
    causal and (verticals[head, k] or slashes[head, q - k])
