# Two-sided window: the n keys before the query's own, that one, and the n after it.
# Source: ModernBERT, arXiv:2412.13663, whose `local_attention` is 2 * n; Gemma 3's two-way mode.
pattern around(n = 64):
    abs(q - k) <= n
