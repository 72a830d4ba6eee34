# Not causal: keys on both sides, an absolute value.
around(64)
