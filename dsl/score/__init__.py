"""Score terms: the small algebra that says which logit enters the softmax for a score.

`nodes` are its expressions, `build` makes them, `check` reads them from text, `printer` writes them
canonically, `derivative` differentiates them, `evaluate` is their plain meaning, `ready` has those
with names, and `terms` is what a pattern is compiled with.
"""
