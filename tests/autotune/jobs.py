"""Small calls that tests tune."""

from __future__ import annotations

from typing import Any

from patterncc.autotune.job import Job
from patterncc.codegen.problem import Problem
from patterncc.dsl import load


def job(text: str = "streaming(4, 64)", **fields: Any) -> Job:
    """A call of a pattern with its run-time defaults."""
    pattern = load(text)
    numbers = {each.name: each.value for each in pattern.numbers if each.value is not None}
    q_len = fields.pop("q_len", 300)
    usual: dict[str, Any] = {
        "problem": Problem("float32", 16, 16, 2),
        "batch": 1,
        "heads": 4,
        "kv_heads": 2,
        "q_len": q_len,
        "kv_len": q_len,
        "numbers": numbers,
    }
    return Job(pattern.structure, **{**usual, **fields})
