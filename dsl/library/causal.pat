# Every query attends to its own key and to all before it.
pattern causal():
    k <= q
