# Tri-shape: attention sinks and a sliding window, and causal attention for the last queries.
# Source: arXiv:2407.02490, microsoft/MInference.
pattern tri_shape(sinks = 128, window = 3968, last = 100):
    streaming(sinks, window) or causal and tail(last)
