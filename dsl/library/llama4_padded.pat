# Llama 4 with left padding: the chunks begin where the sequence does, and nothing sees padding.
# left_pad[b]: tokens of padding before sequence b. The rows of padding see no key.
# Source: iRoPE of Llama 4, Hugging Face transformers, with its padding mask.
pattern llama4_padded(left_pad: int[batch], chunk = 8192, period = 4):
    let pad = left_pad[batch]
    k >= pad and llama4(chunk, period) at (q - pad, k - pad)
