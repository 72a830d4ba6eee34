# A cache that forgets: key k is seen from its own position on, until position until[k].
# Every eviction rule that does not look at the head is this, such as LaCache's after a prompt.
# Source: how an eviction rule reads in one parallel pass; arXiv:2507.14204.
pattern eviction(until: int[token]):
    causal and q < until[k]
