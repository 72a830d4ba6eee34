# Two-sided window: the n keys before the query's own, that one, and the n after it.
# ModernBERT (arXiv:2412.13663), where `local_attention` is 2 * n; PATTERNS 3.1.
pattern around(n = 64):
    abs(q - k) <= n
