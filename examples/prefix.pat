# Prefix LM: the prompt sees itself both ways, what is generated sees everything before it.
pattern prefix_lm(prompt = 256):
    prefix(prompt)
