"""The patterns of the library as the tests that compile all of them lower them."""

from __future__ import annotations

import pytest

from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.lower import lower
from patterncc.dsl import library, load
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.pattern import Pattern

NAMES = [name for name in library.names() if name != "neighborhood_1d"]
TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")
PLACES = [(target, within) for within in (True, False) for target in TARGETS]
"""Where the library is compiled: targets, and whether rows may be taken to end within the keys."""

SIZES = {"heads": 8, "kv_heads": 2, "layers": 4}


def library_pattern(name: str) -> Pattern:
    """A pattern by its name, with a number where it has no default."""
    return load(name, n=64) if name == "prefix" else load(name)


def library_program(name: str, config: KernelConfig, *, within: bool) -> BlockProgram:
    """The forward direction of one in the tiles of a config; skips those without a lowering."""
    tile = config.block_q, config.block_k
    try:
        return lower(library_pattern(name), *tile, sizes=SIZES, within=within, transposed=False)
    except UnsupportedError:
        pytest.skip("no lowering yet")
