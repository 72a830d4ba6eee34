# The last n queries of the sequence attend to every key.
# Not causal by itself.
# Source: the dense last rows of tri-shape attention, microsoft/MInference.
pattern tail(n = 100):
    q >= kv_len - n
