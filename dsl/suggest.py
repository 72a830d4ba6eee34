"""Guesses at what a name that nothing defines was meant to be."""

import difflib
from collections.abc import Iterable

# What other systems call things.
_ELSEWHERE = {
    "q_idx": "q",
    "query": "q",
    "kv_idx": "k",
    "key": "k",
    "h": "head",
    "b": "batch",
    "l": "layer",
    "num_heads": "heads",
    "num_kv_heads": "kv_heads",
    "num_layers": "layers",
    "seq_len": "kv_len",
    "seqlen": "kv_len",
    "k_len": "kv_len",
    "sliding_window": "window",
    "local": "window",
    "dense": "full",
    "True": "true",
    "False": "false",
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`, if one is."""
    choices = sorted(set(known))
    if _ELSEWHERE.get(name) in choices:
        return _ELSEWHERE[name]
    found = difflib.get_close_matches(name[:100], choices, n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A hint with the nearest known name, if one is near."""
    found = nearest(name, known)
    return f"did you mean `{found}`?" if found else None
