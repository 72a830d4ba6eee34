pattern p(n = 2 * 3, m = q, doc: segments = 4): document(doc) and k < n + m
