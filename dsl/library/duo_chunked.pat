# DuoAttention where a prompt is fed in pieces: all queries of a piece share the window of its start.
# The streaming heads of a piece see the sinks, the last `window` keys before the piece, and the piece itself.
# Source: arXiv:2410.10819, mit-han-lab/duo-attention, whose evaluation feeds 32000 tokens at a time.
pattern duo_chunked(retrieval: bool[kv_head], chunk = 32000, sinks = 64, window = 256):
    let before = q // chunk * chunk - window
    causal and (retrieval[kv_head] or k < sinks or k >= before)
