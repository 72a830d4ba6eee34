# Heads that differ: two retrieval heads see everything, the others keep sinks and a window.
pattern heads_differ(sinks = 64, size = 512):
    if head in {0, 5} then causal else streaming(sinks, size)
