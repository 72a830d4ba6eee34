"""What a backward launches where all gradients are computed in one pass: `delta`, which also clears
the sums of the query's gradient, the kernel, the sums of the chunks of key tiles that it splits,
and the kernel that rounds the query's gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.delta_source import ROW_NUMBERS, ROWS, emit_delta, row_length
from patterncc.codegen.gpu.key_access_source import HELD, PASSING
from patterncc.codegen.gpu.key_tile_plan import key_tile_launches
from patterncc.codegen.gpu.launches import Buffer, ceildiv, planned_launch
from patterncc.codegen.gpu.one_pass_choice import ONE_PASS, choose_one_pass
from patterncc.codegen.gpu.pass_plan import Pass, Sources, first_that_holds
from patterncc.codegen.gpu.query_sum_source import COUNTED_ROWS, TILE_ROWS, emit_round_query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterncc.codegen.gpu.delta_source import Cleared
    from patterncc.codegen.gpu.kernel_source import KernelSource
    from patterncc.codegen.gpu.launches import Call, Launch
    from patterncc.codegen.gpu.pass_plan import Lowered
    from patterncc.codegen.ir import Passes
    from patterncc.codegen.problem import Problem


class OnePass:
    """Plans backward calls of one pattern in one pass, where that is chosen.

    Args:
        lower: Gives the pattern's passes for a tile shape, both directions of each.
        in_turn: Must repeated calls give the same bits?
    """

    def __init__(self, lower: Lowered, *, in_turn: bool) -> None:
        self._lower = lower
        self._in_turn = in_turn
        self._alternatives: Sequence[Passes] | None = None
        self._sources = Sources()
        self._of_rows: dict[tuple[Problem, bool, bool], tuple[KernelSource, KernelSource]] = {}

    def launches(self, call: Call) -> tuple[Launch, ...] | None:
        """The launches of a call in order; None where kernels of their own are chosen for the
        query, and for key and value.

        Raises:
            UnsupportedError: There are too many rows.
            ConfigError: The pattern reads a scalar or a table that the call does not give.
        """
        names = (*PASSING, *HELD)
        if any(call.layouts[name].descriptor_obstacle() is not None for name in names):
            return None
        if self._alternatives is None:
            self._alternatives = self._lower(ONE_PASS.block_q, ONE_PASS.block_k)
        # Where patches of a raster are chosen they gain more than it does, which visits none.
        passes = first_that_holds(self._alternatives, call.env, "triton")
        choice = choose_one_pass(
            passes,
            call.problem,
            call.target,
            call.env,
            call.heads,
            in_turn=self._in_turn,
            batch=call.batch,
            multiprocessors=call.multiprocessors,
        )
        if choice.program is None:
            return None
        one = Pass(choice.program, choice.config, resumes=False, hands_on=False)
        turns, stores = choice.turns, choice.first_stores
        steps = key_tile_launches(
            one,
            call,
            self._sources,
            turns=turns,
            split_in_turn=choice.split,
            first_stores=stores,
        )
        kernels = tuple(steps)
        problem, length = call.problem, row_length(call.q_len)
        rows = (call.batch, call.heads, length)
        with_lse = "grad_lse" in call.layouts
        delta, rounds = self._row_kernels(problem, with_lse=with_lse, stores=stores)
        buffers: tuple[Buffer, ...] = (
            *(Buffer(name, rows, "float32") for name in ROW_NUMBERS),
            Buffer("query_sums", (*rows, problem.head_dim), "float32"),
            Buffer("added_shares", (call.batch, call.heads, length // COUNTED_ROWS)),
        )
        numbers = {"row_length": length}
        grid = (length // ROWS, call.heads, call.batch)
        first = planned_launch(delta, grid, call, numbers=numbers, buffers=buffers)
        grid = (ceildiv(call.q_len, TILE_ROWS), call.heads, call.batch)
        return (first, *kernels, planned_launch(rounds, grid, call, numbers=numbers))

    def _row_kernels(
        self, problem: Problem, *, with_lse: bool, stores: bool
    ) -> tuple[KernelSource, KernelSource]:
        """The kernels before and after, which know no pattern. Where the first key tile stores,
        sums are not cleared, and those that nobody wrote are not read."""
        place = (problem, with_lse, stores)
        if place not in self._of_rows:
            clears: Cleared = "counts" if stores else "sums"
            delta = emit_delta(problem, with_lse=with_lse, with_rows=True, clears=clears)
            self._of_rows[place] = delta, emit_round_query(problem, counted=stores)
        return self._of_rows[place]
