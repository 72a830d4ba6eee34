# Prefix LM: causal, and the first n keys are seen by every query.
# The length of the prefix is a run-time value.
# Source: prefix LM, arXiv:1910.10683.
pattern prefix(n):
    k <= q or k < n
