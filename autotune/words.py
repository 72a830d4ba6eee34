"""Configs in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def config_words(values: Mapping[str, Any]) -> str:
    """A config in few words: `64x128, 4 warps, 3 stages, descriptor, reverse`."""
    words = [f"{values['block_q']}x{values['block_k']}"]
    for name, unit in (("num_warps", "warp"), ("num_stages", "stage")):
        if name in values:
            words.append(f"{values[name]} {unit}{'s' * (values[name] != 1)}")
    words += [str(values[name]) for name in ("load", "order") if name in values]
    if values.get("emitter") == "gluon":
        words.append("Gluon")
    if values.get("neighbours") == "heads":
        words.append("heads side by side")
    if values.get("max_registers") is not None:
        words.append(f"at most {values['max_registers']} registers")
    return ", ".join(words)
