# n is fixed by what chunked does with it; m is not, and is given at the call.
pattern p(n, m): chunked(2 * n) and k < m
