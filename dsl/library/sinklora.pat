# SinkLoRA: LongLoRA's groups, shifted in the last quarter of the heads, and sinks that all see.
# Which quarter is shifted is not known: only a note on the paper says that one is.
# Source: arXiv:2406.05678.
pattern sinklora(group = 2048, sinks = 4):
    let half = group // 2
    let shifted = chunked(group) at (q + half, k + half)
    causal and (k < sinks or (if 4 * head < 3 * heads then chunked(group) else shifted))
