# DuoAttention: retrieval heads are causal, the others have sinks and a sliding window.
# arXiv:2410.10819; PATTERNS 2.5. retrieval[h]: is key/value head h a retrieval head? Its decode caches hold window + 1 keys.
pattern duo(retrieval: bool[kv_head], sinks = 64, window = 256):
    if retrieval[kv_head] then causal else streaming(sinks, window)
