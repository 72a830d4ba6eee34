pattern near(x): cover(64, 64, abs(k - x) < 8)
pattern p(): near(q + 1)
