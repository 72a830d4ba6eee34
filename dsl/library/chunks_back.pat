# Chunks of n positions, each attending to itself and the m whole chunks before it.
# Not causal by itself.
# Source: the chunk windows of Gecko, XuezheMax/gecko-llm.
pattern chunks_back(n = 2048, m = 1):
    0 <= q // n - k // n <= m
