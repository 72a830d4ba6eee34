# Packed documents: queries attend within their own document.
# PATTERNS 8.1. Not causal by itself. A pattern with a grid or with sinks must start anew in each document:
# `chunked(512) at (q - start(doc, q), k - start(doc, k))`.
pattern document(doc: segments):
    doc[q] == doc[k]
