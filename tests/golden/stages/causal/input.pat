# The smallest program: one partial tile range, one full one.
causal
