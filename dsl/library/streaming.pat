# StreamingLLM: a few attention sinks and a sliding window.
# arXiv:2309.17453; also the Λ-shape of LM-Infinite and the A-shape of MInference; PATTERNS 2.1 to 2.3. `window` counts the
# query's own key; StreamingLLM's `recent_size` does not, so window = recent_size + 1.
pattern streaming(sinks = 4, window = 4096):
    causal and (k < sinks or q - k < window)
