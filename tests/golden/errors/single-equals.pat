causal and q % 4 = 0
