# Chunks: a query sees its own chunk and the one before, never further back.
pattern chunks(size = 512):
    causal and chunks_back(size, 1)
