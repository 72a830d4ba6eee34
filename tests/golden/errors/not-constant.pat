cover(heads, 64, causal) and cover(64, layer + 1, causal)
