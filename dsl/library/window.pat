# Sliding window: n keys, the query's own among them.
# `n` counts keys, as `sliding_window` of a configuration does; `window_size = (w, 0)` of FlashAttention counts the keys before
# the query's own: n = w + 1.
# Source: Mistral 7B, arXiv:2310.06825; the local layers of Gemma 2 and 3 and gpt-oss.
pattern window(n = 4096):
    0 <= q - k < n
