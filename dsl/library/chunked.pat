# Chunks of n positions, each attending within itself.
# Not causal by itself.
# Source: Mega, arXiv:2209.10655; Llama 4's chunked layers, transformers.
pattern chunked(n = 8192):
    q // n == k // n
