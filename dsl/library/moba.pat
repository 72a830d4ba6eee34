# MoBA: the query's own chunk, and listed chunks before it for each token and head.
# keep[b, h, q, j]: does the token at position q see chunk j? `patterncc.selection.moba` chooses them.
# Source: arXiv:2502.13189, MoonshotAI/MoBA.
pattern moba(keep: bool[batch, head, *, *], chunk = 4096):
    causal and (chunked(chunk) or keep[batch, head, q, k // chunk])
