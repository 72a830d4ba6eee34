# Tri-shape: attention sinks and a sliding window, and causal attention for the last queries.
# MInference (arXiv:2407.02490), TriangleMix (arXiv:2507.21526); PATTERNS 2.4.
pattern tri_shape(sinks = 128, window = 3968, last = 100):
    streaming(sinks, window) or causal and tail(last)
