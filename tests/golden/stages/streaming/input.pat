# A union: sinks and window become disjoint sweeps, whichever covers a tile first.
pattern streaming(sinks = 4, window = 4096):
    causal and (k < sinks or q - k < window)
