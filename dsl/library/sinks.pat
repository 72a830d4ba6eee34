# Attention sinks: the first n keys.
# Not causal by itself.
# Source: StreamingLLM, arXiv:2309.17453.
pattern sinks(n = 4):
    k < n
