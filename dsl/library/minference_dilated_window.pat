# MInference's static form of sinks, a window, and every second distance beyond it.
# Source: arXiv:2407.02490, `dilated2` of microsoft/MInference, before its kernel merges distances.
pattern minference_dilated_window(sinks = 1024, window = 2048, reach = 6144):
    causal and (k < sinks or q - k < window or q - k < reach and (q - k) % 2 == 1)
