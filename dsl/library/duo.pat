# DuoAttention: retrieval heads are causal, the others have sinks and a sliding window.
# retrieval[h]: is key/value head h a retrieval head? `patterncc.importers.duo_attention` reads the published files.
# Its decode caches hold window + 1 keys.
# Source: arXiv:2410.10819, mit-han-lab/duo-attention; prefill of LServe, arXiv:2502.14866, has sinks = 128, window = 8192.
pattern duo(retrieval: bool[kv_head], sinks = 64, window = 256):
    if retrieval[kv_head] then causal else streaming(sinks, window)
