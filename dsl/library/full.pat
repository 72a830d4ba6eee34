# Every query attends to every key.
# Source: the encoder of arXiv:1706.03762.
pattern full():
    true
