# Prefix LM: causal, and the first n keys are seen by every query.
# PATTERNS 8.2. The length of the prefix is a run-time value.
pattern prefix(n):
    k <= q or k < n
