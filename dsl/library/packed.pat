# Packed sequences: causal within each document.
# Source: packed training; Prepacking, arXiv:2404.09529, siyan-zhao/prepacking.
pattern packed(doc: segments):
    causal and document(doc)
