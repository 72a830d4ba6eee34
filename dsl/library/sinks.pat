# Attention sinks: the first n keys.
# StreamingLLM (arXiv:2309.17453); PATTERNS 2.1. Not causal by itself.
pattern sinks(n = 4):
    k < n
