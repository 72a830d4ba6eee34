# A window of whole blocks: the query's own, `before` ones before it and `after` ones after it.
# Longformer without overlap: block = window, both 1. DeepSpeed's Local: 16, 1, 1.
# Source: arXiv:2004.05150; LocalSlidingWindow of deepspeedai/DeepSpeed.
pattern block_window(block = 16, before = 1, after = 1):
    -after <= q // block - k // block <= before
