# Tri-shape prefill: sinks and a window, and causal attention for the last rows, which write the answer.
pattern last_rows(sinks = 8, size = 512, last = 128):
    tri_shape(sinks, size, last)
