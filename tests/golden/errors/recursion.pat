pattern a(): k < 3 or b
pattern b(): a and c
pattern c(): c
pattern window(n): window(n) and causal
