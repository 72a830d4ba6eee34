# Packed documents: queries attend within their own document.
# Not causal by itself. A pattern with a grid or with sinks must start anew in each document:
# `chunked(512) at (q - start(doc, q), k - start(doc, k))`.
# Source: packed training; Prepacking, arXiv:2404.09529, siyan-zhao/prepacking.
pattern document(doc: segments):
    doc[q] == doc[k]
