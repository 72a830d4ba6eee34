# Every query attends to every key.
pattern full():
    true
