# Causal in the first layers, a window in the others.
# Source: Qwen2, arXiv:2407.10671, whose `max_window_layers` is `first`, Hugging Face transformers.
pattern late_window(n = 4096, first = 28):
    if layer < first then causal else window(n)
