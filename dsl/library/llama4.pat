# Llama 4: causal chunks in all layers but every period-th, which is causal.
# Source: iRoPE of Llama 4, Hugging Face transformers.
pattern llama4(chunk = 8192, period = 4):
    if (layer + 1) % period == 0 then causal else causal and chunked(chunk)
