# StreamingLLM: a few attention sinks and a sliding window.
pattern streaming(sinks = 4, window = 4096):
    causal and (k < sinks or q - k < window)
