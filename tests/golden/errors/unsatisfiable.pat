causal and window(64) and 4 < 3
