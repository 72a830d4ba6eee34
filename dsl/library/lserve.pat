# LServe's decoding: retrieval heads read listed pages, the others sinks and a window.
# pages[b, h, i]: does head h read page i? `patterncc.selection.quest_pages` chooses them. The last page must be listed.
# Source: arXiv:2502.14866, mit-han-lab/omniserve.
pattern lserve(retrieval: bool[kv_head], pages: bool[batch, head, *], page = 64, sinks = 128,
        window = 256):
    if retrieval[kv_head] then
        causal and pages[batch, head, k // page] else
        streaming(sinks, window)
