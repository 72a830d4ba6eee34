# Megalodon: causal chunks.
# Source: arXiv:2404.08801, XuezheMax/megalodon.
pattern megalodon(chunk = 2048):
    causal and chunked(chunk)
