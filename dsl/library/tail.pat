# The last n queries of the sequence attend to every key.
# The dense last rows of tri-shape attention, MInference; PATTERNS 2.4. Not causal by itself.
pattern tail(n = 100):
    q >= kv_len - n
