# Longformer in an encoder: a window to both sides, and a few global tokens that see all and are seen by all.
pattern encoder(size = 256, tokens = 4):
    around(size) or k < tokens or q < tokens
