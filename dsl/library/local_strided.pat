# Causal blocks: the nearest `local` ones and every stride-th one of the sequence.
# Source: one phase of Phi-3-small's attention, arXiv:2404.14219, as vLLM counts it.
pattern local_strided(block = 64, local = 16, stride = 8):
    causal and (q // block - k // block < local or (k // block + 1) % stride == 0)
