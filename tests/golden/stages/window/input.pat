# A run-time window: a bound on each side of the diagonal.
pattern p(n): window(n)
