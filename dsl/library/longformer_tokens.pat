# Longformer with global tokens anywhere: they see all and are seen by all.
# seen[b, i]: is token i of sequence b a global one? `window` is one side: half of a configuration's `attention_window`.
# Source: arXiv:2004.05150, allenai/longformer.
pattern longformer_tokens(seen: bool[batch, *], window = 256, dilation = 1):
    longformer(window, dilation, 0) or seen[batch, k] or seen[batch, q]
