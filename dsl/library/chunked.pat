# Chunks of n positions, each attending within itself.
# Llama 4's chunked layers, Megalodon (arXiv:2404.08801); PATTERNS 3.2, 3.6. Not causal by itself.
pattern chunked(n = 8192):
    q // n == k // n
