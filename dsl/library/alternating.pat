# A window in all layers but every period-th, which is causal.
# Gemma 2: period = 2, n = 4096. gpt-oss: 2, 128, and a sink in the softmax besides. Gemma 3: 6, 1024. Cohere 2: 4, 4096.
# Source: arXiv:2503.19786, arXiv:2408.00118, arXiv:2508.10925, Hugging Face transformers.
pattern alternating(n = 1024, period = 6):
    if (layer + 1) % period == 0 then causal else window(n)
