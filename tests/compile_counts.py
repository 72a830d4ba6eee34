"""How much this process has compiled: what a call that finds everything kept leaves as it is."""

from __future__ import annotations

from typing import NamedTuple

from patterncc import programs, signatures


class Counts(NamedTuple):
    """The texts that were parsed and the programs that were lowered so far."""

    patterns: int
    programs: int


def compile_counts() -> Counts:
    """What was compiled so far."""
    parsed = (signatures._signature, signatures.resolve)
    lowered = (programs.passes, programs.program)
    return Counts(
        sum(cache.cache_info().misses for cache in parsed),
        sum(cache.cache_info().misses for cache in lowered),
    )
