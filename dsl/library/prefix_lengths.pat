# Prefix LM with a prefix for each sequence of the batch.
# Source: prefix LM, arXiv:1910.10683.
pattern prefix_lengths(length: int[batch]):
    k <= q or k < length[batch]
