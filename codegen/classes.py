"""The classes of rows that a program with a tiling is run for, at a call's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from patterncc.codegen.ir import CALL_KV_LEN, CALL_Q_LEN, DENSE, Q_CLASS, BlockProgram
from patterncc.codegen.schedule import evaluate


@dataclass(frozen=True, slots=True)
class RowClass:
    """Rows `first_row, first_row + q_step, ...` of a call and the keys `first_key, first_key +
    k_step, ...`, with the numbers that a program sees there (`ir.Tiling`).
    """

    first_row: int
    first_key: int
    env: Mapping[str, Any]


def row_classes(program: BlockProgram, env: Mapping[str, Any]) -> Iterator[RowClass]:
    """The classes of a call that have rows.

    Args:
        program: Whose classes; one that is dense has one, the call itself.
        env: The call's numbers: `q_len`, `kv_len`, `q_offset` and what the pattern reads.
    """
    tiling = program.tiling
    if tiling == DENSE:
        yield RowClass(0, 0, env)
        return
    q_len, kv_len, q_offset = int(env["q_len"]), int(env["kv_len"]), int(env["q_offset"])
    call = {**env, CALL_Q_LEN.name: q_len, CALL_KV_LEN.name: kv_len}
    for row in range(min(tiling.q_step, q_len)):
        scope = {**call, Q_CLASS.name: (q_offset + row) % tiling.q_step}
        first_key = int(evaluate(tiling.k_class, scope))
        scope["q_offset"] = (q_offset + row) // tiling.q_step
        scope["q_len"] = -(-(q_len - row) // tiling.q_step)
        scope["kv_len"] = max(-(-(kv_len - first_key) // tiling.k_step), 0)
        yield RowClass(row, first_key, scope)
