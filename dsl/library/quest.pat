# Quest: listed pages, per head; the first layers causal.
# pages[b, h, i]: does head h read page i? `patterncc.selection.quest_pages` chooses them for the queries of a call.
# Source: arXiv:2406.10774, mit-han-lab/Quest.
pattern quest(pages: bool[batch, head, *], page = 16, dense = 2):
    causal and (layer < dense or pages[batch, head, k // page])
