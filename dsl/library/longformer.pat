# Longformer: a two-sided window that may be dilated, and global tokens at the start.
# `window` is one side: half of a configuration's `attention_window`. The first `globals` tokens see all and are seen by all.
# Source: arXiv:2004.05150, allenai/longformer.
pattern longformer(window = 256, dilation = 1, globals = 1):
    abs(q - k) <= window * dilation and (q - k) % dilation == 0 or k < globals or q < globals
