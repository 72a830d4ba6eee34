# Layers that differ, as in Gemma 3: five layers with a window, then one that sees everything.
pattern alternating(size = 1024, period = 6):
    if layer % period == period - 1 then causal else window(size)
