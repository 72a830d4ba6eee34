# ModernBERT: every period-th layer from the first sees all, the others a two-sided window.
# n is half of the configuration's `local_attention`.
# Source: arXiv:2412.13663, Hugging Face transformers.
pattern modernbert(n = 64, period = 3):
    layer % period == 0 or around(n)
