"""How the warps of a Gluon program share its work and its registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.problem import Problem

ROWS = 64
"""Rows of a warpgroup: those of one matrix instruction."""

_WARPGROUP = 4  # warps
_REGISTERS = 65536  # of a multiprocessor
_STEP = 8  # registers come in eights
_LEAST = 24  # of a thread of a warpgroup that gives its registers away


@dataclass(frozen=True, slots=True)
class Warps:
    """The warps of one program: warpgroups that compute, and one that loads.

    Attributes:
        computing: Warpgroups that compute, each its own 64 rows.
        at_start: Registers of each thread when the program starts; of the warpgroup that loads all
            but a few go to the others.
        loading_registers: Of a thread that loads.
        computing_registers: Of a thread that computes.
    """

    computing: int
    at_start: int
    loading_registers: int
    computing_registers: int


def warps_of(config: KernelConfig) -> Warps:
    """The warps of a program of `block_q` rows.

    Left alone, one program fills a multiprocessor where two warpgroups compute, and two do where
    one computes. `max_registers` of a computing thread leave room for more.
    """
    computing = config.num_warps // _WARPGROUP
    programs = 2 if computing == 1 else 1
    threads = programs * 32 * _WARPGROUP * (computing + 1)
    at_start = _REGISTERS // threads // _STEP * _STEP
    shared = (at_start * (computing + 1) - _LEAST) // computing // _STEP * _STEP
    if config.max_registers is not None:
        shared = min(shared, config.max_registers)
        at_start = -(-(shared * computing + _LEAST) // (computing + 1) // _STEP) * _STEP
    return Warps(computing, at_start, _LEAST, shared)


def query_in_registers(config: KernelConfig) -> bool:
    """Do products read the query from registers? Tiles of 64 keys are so quickly done that shared
    memory could not bring it along with the keys."""
    return config.block_k < 2 * ROWS


def tile_bytes(config: KernelConfig, problem: Problem) -> int:
    """Bytes of the tiles in shared memory: the rings of keys and values, and the query's."""
    keys, values = problem.head_dim, problem.value_head_dim
    rings = config.num_stages * config.block_k * (keys + values)
    return 2 * (rings + config.block_q * keys)
