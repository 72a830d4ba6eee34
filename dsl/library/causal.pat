# Every query attends to its own key and to all before it.
# Source: the decoder of arXiv:1706.03762.
pattern causal():
    k <= q
