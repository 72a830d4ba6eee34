# TriangleMix: causal in the first layers, tri-shape in the deep ones.
# Source: arXiv:2507.21526, microsoft/MInference.
pattern triangle_mix(start = 16, sinks = 8, window = 512, last = 128):
    if layer < start then causal else tri_shape(sinks, window, last)
