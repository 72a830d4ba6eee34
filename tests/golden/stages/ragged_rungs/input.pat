# Rungs that are no multiple of the tile: residue classes.
causal and (k // 100 + layer) % 8 == 0
