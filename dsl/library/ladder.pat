# Sinks, a recent window, and one rung of `rung` keys in every `period`, shifted from layer to layer.
# A closed form in the manner of LaCache, whose exact recurrence is `lacache`.
# Source: after arXiv:2507.14204.
pattern ladder(sinks = 4, recent = 1024, rung = 128, period = 8, kept = 1):
    causal and (k < sinks or q - k < recent or (k // rung + layer) % period < kept)
