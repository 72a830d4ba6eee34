# StreamingLLM: a few attention sinks and a sliding window.
# Also the Λ-shape of LM-Infinite and the A-shape of MInference. `window` counts the query's own key; StreamingLLM's
# `recent_size` does not, so window = recent_size + 1.
# Source: arXiv:2309.17453, mit-han-lab/streaming-llm; arXiv:2308.16137, Glaciohound/LM-Infinite.
pattern streaming(sinks = 4, window = 4096):
    causal and (k < sinks or q - k < window)
