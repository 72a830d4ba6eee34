# Tree of drafts: the last positions are its nodes, which see the text before and their ancestors.
# ancestors[b, i, j]: is node j an ancestor of node i, or i itself? The text itself is causal.
# Source: Medusa, arXiv:2401.10774; EAGLE-2, arXiv:2406.16858; SpecInfer, arXiv:2305.09781.
pattern tree(ancestors: bool[batch, *, *], nodes = 64):
    let text = kv_len - nodes
    if q < text then causal else k < text or ancestors[batch, q - text, k - text]
