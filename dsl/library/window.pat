# Sliding window: n keys, the query's own among them.
# Mistral 7B (arXiv:2310.06825), Gemma 2 and 3, gpt-oss; PATTERNS 3.1. `n` counts keys, as `sliding_window` of their
# configurations does; `window_size = (w, 0)` of FlashAttention counts the keys before the query's own: n = w + 1.
pattern window(n = 4096):
    0 <= q - k < n
