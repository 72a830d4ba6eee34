"""The second computation in a Gluon forward kernel, with care for numbers that are not finite: when
all warps have met again.

The loops multiply whatever a tile of values holds, and 0 times NaN is NaN: a hidden value reaches
all rows of its partial tile. A warpgroup looks at its rows once, after the loops. Where one of them
may have caught that, it stores nothing and leaves a note in shared memory. When the loading warp
and all warpgroups are done, the first warpgroup reads the notes, and computes what is spoiled once
more: one tile after the other, in the order of the loops and with the same peaks, so a row that
sees nothing but finite numbers gets the bits that it gets where there are no others. What is left
out and how is told in `isolation_source`.

It stands behind the region in which warps have parts of their own, as text that is written out: a
function that is called would make all products wait, and code within the region would share the
registers of its loops.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.forward_source import PEAK_FLOOR
from patterncc.codegen.gpu.gluon.dialect import function_text, gluon_functions
from patterncc.codegen.gpu.gluon.tile_writer import TileWriter, per_row_of_scores
from patterncc.codegen.gpu.gluon.warps import ROWS, query_in_registers
from patterncc.codegen.gpu.isolation_source import CODE_HELPERS
from patterncc.codegen.gpu.kernel_text import INDENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_SOME = 16
"""Rows of a tile of values at a time: few registers."""

_PLACE = re.compile(r"\btl\.program_id\((\d)\)")


_IN_PLACE = f'''\
@gluon.jit
def leave_codes(values):
    """Leaves codes in place of a tile's values."""
    for first in tl.static_range(0, BLOCK_K, {_SOME}):
        place = values.slice(first, {_SOME}, dim=0)
        numbers = place.load(STORED)
        place.store(number_codes(numbers).to(numbers.dtype))
    show_to_copies()
    synchronize()


@gluon.jit
def leave_finite(values):
    """Leaves 0 in place of a tile's values that are not finite."""
    for first in tl.static_range(0, BLOCK_K, {_SOME}):
        place = values.slice(first, {_SOME}, dim=0)
        place.store(finite_numbers(place.load(STORED)))
    show_to_copies()
    synchronize()
'''
"""Source of what changes a tile of values where it lies."""


class CarefulWriter(TileWriter):
    """What writers of whole kernels have in common, with the second computation; arguments as of
    `TileWriter`."""

    def _careful_functions(self, names: Sequence[str]) -> tuple[str, ...]:
        """The sources of what computes the rows of a warpgroup once more.

        Args:
            names: Their arguments, besides the warpgroup's number, `zero`, of which the compiler
                does not know that it is 0, and the phase of the barrier `again_ready`.
        """
        arguments = [*names, "part", "zero", "phase"]
        return (
            function_text("find_left_out", arguments, self._find_left_out()),
            function_text("compute_again", arguments, self._compute_again()),
        )

    def _repair_lines(self, names: Sequence[str]) -> Iterator[str]:
        """What is done behind the region in which warps are apart."""
        given = ", ".join([*names, "part", "again - 1", "phase"])
        yield ""
        yield "# Rows that may be spoiled have not been stored: they are computed once more."
        yield "phase = 0"
        yield f"for part in range({self._warps.computing}):"
        yield f"{INDENT}again = tl.max(spoiled.index(part).load(NOTE), 0)"
        yield f"{INDENT}if again > 0:"
        yield f"{INDENT * 2}phase = find_left_out({given})"
        yield f"{INDENT * 2}phase = compute_again({given})"

    def _noted(self) -> Iterator[str]:
        """Leaves `again` for what is behind the region."""
        yield "spoiled.index(part).store(tl.full([1], 0, tl.int32, layout=NOTE) + again)"

    def _look(self) -> Iterator[str]:
        """`again`: has a number come to rows that do not see it?"""
        yield ""
        yield "# 0 * NaN is NaN: has a number come to rows that do not see it? A row whose weights"
        yield "# are NaN has nothing but NaN to give, and sees why."
        yield f"row_sums = {per_row_of_scores('tl.sum(out, 1)')}"
        yield "again = row_exists & (row_sums != row_sums) & (total > 0.0)"
        yield "again = tl.max(tl.where(again, 1, 0), 0)"

    # -------------------------------------------------------------------------------- once more

    def _own_rows(self) -> Iterator[str]:
        """The rows of the warpgroup, bounds, mask and query."""
        # From what the compiler does not know: else it would keep bounds and limits in registers
        # from the loops on.
        lines = [*self._rows(), *self._mask.before_loops(always=self._terms.reads_key)]
        for line in lines:
            yield _PLACE.sub(r"(tl.program_id(\1) + zero)", line)
        yield f"no_scores = tl.full([{ROWS}, BLOCK_K], 0.0, tl.float32, layout=SCORES)"
        yield "own = part + zero"
        yield f"query = {self._own_query()}"
        if query_in_registers(self._config):
            yield from self._query_operand()

    def _own_query(self) -> str:
        return f"query_tiles.index(own).reshape([{ROWS}, {self._problem.head_dim}])"

    def _compute_again(self) -> Iterator[str]:
        """The rows, and their output, once more."""
        yield from self._own_rows()
        if self._resumes:
            yield self._access.row_numbers_address("lse")
        yield from self._attempts()
        yield from self._normalised()
        yield f"left_out = {self._left_tile()}.load(OUT).to(tl.float32)"
        yield "out = tl.where(left_out == 0.0, out, out + left_out)"
        if not self._resumes:
            yield self._access.row_numbers_address("lse")
        yield from self._log_total()
        yield self._access.store_row_numbers("lse")
        yield from self._store_place()
        yield from self._store()
        yield "return phase"

    def _left_tile(self) -> str:
        """Where it lies what numbers that are not finite make of rows."""
        tile = f"value_tiles.index(own ^ 1).reshape([BLOCK_K, {self._problem.value_head_dim}])"
        return f"{tile}.slice(0, {ROWS}, dim=0)"

    def _attempts(self) -> Iterator[str]:
        yield from self._before_all_tiles()
        yield from self._careful_tiles()

    def _before_all_tiles(self) -> Iterator[str]:
        """The rows' state before any tile of this pass."""
        if self._resumes:
            yield from self._earlier_passes()
            yield from self._access.load_state()
            return
        if self._terms.has_sink:
            yield from self._terms.start()
            yield self._no_out()
        else:
            yield from self._nothing_seen()

    def _nothing_seen(self) -> Iterator[str]:
        """The state of rows before any tile."""
        layout = "layout=tl.SliceLayout(1, SCORES)"
        yield f"peak = tl.full([{ROWS}], {PEAK_FLOOR}, tl.float32, {layout})"
        yield f"total = tl.full([{ROWS}], 0.0, tl.float32, {layout})"
        yield self._no_out()

    def _all_tiles(self, tile: Iterable[str]) -> Iterator[str]:
        """A loop over all tiles, one after the other.

        Args:
            tile: Lines for the scores of a tile, whose values are at `values`.
        """
        access, dims = self._access, self._problem.value_head_dim
        ready = "again_ready.index(0)"
        in_registers = query_in_registers(self._config)
        lines = [
            # Read for each tile: known before the loop, the places of operands would lie in uniform
            # registers, of which ptxas 12.8 has too few, and come back by a way of their own.
            "own = part + tl.max(spoiled.index(part).load(NOTE), 0) - 1",
            *(() if in_registers else (f"asked = {self._own_query()}",)),
            self._visited.start_of_all(),
            access.box_start(),
            f"expect_bytes({ready}, {sum(map(access.box_bytes, ('key', 'value')))})",
            *(
                f"copy_in({name}_desc_0, {access.key_place()}, {ready}, {name}_tiles.index(own))"
                for name in ("key", "value")
            ),
            f"wait({ready}, phase)",
            "phase = phase ^ 1",
            self._ask_scores("own"),
            "scores = finish(0, deps=(scores,))",
            *self._logits(),
            *self._mask.masked_scores(),
            f"values = value_tiles.index(own).reshape([BLOCK_K, {dims}])",
            *tile,
            "# The next tile comes to where this one lay.",
            "synchronize()",
        ]
        yield self._visited.all()
        yield from (INDENT + line for line in lines)

    def _find_left_out(self) -> Iterator[str]:
        """Leaves what numbers that are not finite make of the rows in shared memory."""
        dtype = f"tl.{self._problem.dtype}"
        yield from self._own_rows()
        yield self._no_out().replace("out", "left_out", 1)
        yield self._no_out().replace("out", "no_codes", 1)
        yield from self._all_tiles(
            (
                'seen = tl.where(scores == float("-inf"), 0.0, 0.001953125)',
                f"seen = tl.convert_layout(seen.to({dtype}), WEIGHTS)",
                "leave_codes(values)",
                "codes = multiply(seen, values, no_codes, use_acc=False, is_async=True)",
                "codes = finish(0, deps=(codes,))",
                "left_out = with_codes(left_out, codes)",
            )
        )
        yield f"{self._left_tile()}.store(left_out.to({dtype}))"
        yield "return phase"

    def _careful_tiles(self) -> Iterator[str]:
        """All tiles, with 0 in place of values that are not finite."""
        yield from self._all_tiles(
            (
                *self._weights_again(),
                self._decayed(),
                f"rounded = tl.convert_layout(weights.to(tl.{self._problem.dtype}), WEIGHTS)",
                "leave_finite(values)",
                "out = multiply(rounded, values, out, is_async=True)",
                "out = finish(0, deps=(out,))",
            )
        )

    def _weights_again(self) -> Iterator[str]:
        """The weights of a tile, as its loop has computed them."""
        yield from self._weights()

    @staticmethod
    def _careful_helpers() -> tuple[str, ...]:
        """The sources of what those functions call."""
        return (gluon_functions(CODE_HELPERS), _IN_PLACE)
