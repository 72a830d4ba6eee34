# Gecko: causal chunks that also see the whole chunk before.
# Packed sequences: `document(doc) and gecko`. Its working memory is another term, not a mask.
# Source: XuezheMax/gecko-llm.
pattern gecko(chunk = 2048):
    causal and chunks_back(chunk, 1)
