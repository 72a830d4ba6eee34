"""The forward kernel in Gluon whose full tiles keep the peak that they find.

Softmax may subtract any number from a row's scores, as long as no weight leaves the range of
float32 and some stays in it. The exact maximum is the careful choice; here full tiles subtract the
peak of the tiles before them instead, and neither look for a larger score nor rescale what has been
summed up. That saves a third of their instructions. The peak is exact for masked tiles and for the
first full tile, so that all rows have one and it has seen a tile's keys; from there on scores may
grow by the range of float32, 88 in units of a logit, which bfloat16 shares: weights beyond 1 are
rounded no worse than those below.

Where scores grew by more, the sum of weights or the output is infinite or no number. A warpgroup
sees that in its rows before it stores them. Where kernels take care of numbers that are not finite,
`careful_writer` computes the rows again, those with exact peaks that are not finite with the peaks
of the loops. Else the warpgroup computes all of its rows again by itself, with exact peaks
throughout: when all warpgroups are done with the rings, it copies one tile after the other into the
stage of its own number.

Weights go from one tile to the next as pairs of 16-bit numbers, so that both products of a tile can
be asked for at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.gluon.dialect import PAIRS, ROW_SUMS, sums_layout
from patterncc.codegen.gpu.gluon.forward_writer import ForwardWriter
from patterncc.codegen.gpu.gluon.tile_writer import per_row_of_scores
from patterncc.codegen.gpu.gluon.warps import ROWS, query_in_registers
from patterncc.codegen.gpu.kernel_terms import tile_logit
from patterncc.codegen.gpu.kernel_text import INDENT
from patterncc.dsl.score.nodes import coordinates_read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem


def keeps_peak(program: BlockProgram, problem: Problem) -> bool:
    """Should full tiles of a pass keep the peak? float16 has not the range, score terms that read
    keys take the registers that one more loop needs, and without full tiles there is nothing to
    gain."""
    logit = tile_logit(problem.terms, program.tiling)
    if problem.dtype != "bfloat16":
        return False
    if logit is not None and "k" in coordinates_read(logit):
        return False
    return any(sweep.kind == "full" for sweep in program.forward)


_NO_SUMS = "sums = tl.full([4, 2, 8, 4], 0.0, tl.float32, layout=SUMS)"

_ALL_SUMS = "total + tl.where(exact, 0.0, row_sums(sums))"
"""The sum of weights with those that threads have for themselves, where peaks are kept."""


class SteadyWriter(ForwardWriter):
    """Writes one such kernel; arguments as of `ForwardWriter`."""

    def _computing_barriers(self) -> dict[str, tuple[int, int]]:
        if self._repairs:
            return {}
        return {
            "rings_over": (1, self._warps.computing),
            "again_ready": (self._warps.computing, 1),
        }

    def _loaded(self) -> tuple[str, ...]:
        return super()._loaded() if self._repairs else ("query",)

    def _helpers(self) -> tuple[str, ...]:
        return (*super()._helpers(), PAIRS, ROW_SUMS)

    def _constants(self) -> dict[str, object]:
        return super()._constants() | {"SUMS": sums_layout()}

    # -------------------------------------------------------------------------------- weights

    def _keep_weights(self) -> Iterator[str]:
        yield "pairs = packed(weights)"

    def _rounded(self) -> str:
        return "rounded = tl.convert_layout(unpacked(pairs), WEIGHTS)"

    def _loops(self) -> Iterator[str]:
        for number, loop in enumerate(self._visited.loops):
            yield ""
            if loop.kind == "partial":
                yield "# Partial tiles, with the mask."
                yield self._visited.rest(number)
                yield from (INDENT + line for line in self._tile(number, masked=True))
                continue
            if number > 0:
                yield "# The first full tile, unless it is the very first one."
                yield self._visited.beginning(number)
                yield from (INDENT + line for line in self._tile(number, masked=False))
            yield "# Full tiles, whose rows have a peak."
            yield _NO_SUMS
            yield f"for step in range(1, count_{number}):"
            yield from (INDENT + line for line in self._steady_tile(number))
            yield "total = total + row_sums(sums)"

    def _steady_tile(self, number: int) -> Iterator[str]:
        yield from self._scores(number, masked=False)
        yield f"weights = tl.exp2(scores{self._terms.scale} - peak[:, None])"
        yield "sums = sums + own_sums(weights)"
        yield "out = finish(0, deps=(out,))"
        yield from self._keep_weights()
        yield "arrive(value_free.index(last))"

    # -------------------------------------------------------------------------------- once more

    def _last_values(self) -> Iterator[str]:
        yield from super()._last_values()
        if not self._repairs:
            yield "arrive(rings_over.index(0))"
        yield ""
        yield "# Scores that outgrew the peak left a sum or an output that is no finite number."
        yield from self._sound()
        yield "again = tl.max(tl.where(row_exists & (sound == 0), 1, 0), 0)"
        if not self._repairs:
            yield "if again > 0:"
            yield from (INDENT + line for line in self._again())

    @staticmethod
    def _sound() -> Iterator[str]:
        """Are a row's sum of weights and output finite?"""
        yield f"zeros = {per_row_of_scores('tl.sum(out * 0.0, 1)')}"
        yield 'sound = (total < float("inf")) & (zeros == 0.0)'

    def _look(self) -> Iterator[str]:
        yield from ()  # The same look finds what hidden numbers have spoiled.

    def _again(self) -> Iterator[str]:
        """All tiles once more, one after the other and with exact peaks."""
        yield "wait(rings_over.index(0), 0)"
        # The stage of the warpgroup's number. Told so, ptxas 12.8 would keep the places of operands
        # in uniform registers from the loops above on, and has too few of them.
        yield "own = part + again - 1"
        if not query_in_registers(self._config):
            yield f"asked = query_tiles.index(own).reshape([{ROWS}, {self._problem.head_dim}])"
        yield from self._before_all_tiles()
        yield "phase = 0"
        # One loop: of products that share an operand in two, each of which may be passed by, ptxas
        # 12.8 takes that for computed where it is not.
        yield self._visited.all()
        yield from (INDENT + line for line in self._tile_again())

    def _tile_again(self) -> Iterator[str]:
        yield self._visited.start_of_all()
        yield self._access.box_start()
        ready = "again_ready.index(part)"
        yield f"expect_bytes({ready}, {sum(map(self._access.box_bytes, ('key', 'value')))})"
        for name in ("key", "value"):
            tile = f"{name}_tiles.index(own)"
            yield f"copy_in({name}_desc_0, {self._access.key_place()}, {ready}, {tile})"
        yield f"wait({ready}, phase)"
        yield self._ask_scores("own")
        yield "scores = finish(0, deps=(scores,))"
        yield from self._logits()
        yield from self._mask.masked_scores()
        yield from self._weights()
        yield self._decayed()
        yield super()._rounded()
        yield self._add_values("own")
        yield "out = finish(0, deps=(out,))"
        yield "# The stage is the warpgroup's own: its threads alone must be done with it."
        yield "synchronize()"
        yield "phase = phase ^ 1"

    # -------------------------------------------------------------------------------- repair

    def _attempts(self) -> Iterator[str]:
        yield "# With the peaks of the loops; rows that are not finite then, with exact ones, too."
        yield "exact = rows < 0"
        yield from self._nothing_seen()
        yield "again = 1"
        yield "while again > 0:"
        lines = [
            *self._before_all_tiles(),
            _NO_SUMS,
            *self._careful_tiles(),
            f"total = {_ALL_SUMS}",
            *self._sound(),
            "unsound = row_exists & (sound == 0) & (exact == 0)",
            "again = tl.max(tl.where(unsound, 1, 0), 0)",
            "exact = exact | unsound",
        ]
        yield from (INDENT + line for line in lines)

    def _weights_again(self) -> Iterator[str]:
        scale = self._terms.scale
        yield f"steady = {self._steady()}"
        yield "keeps = steady & (exact == 0)"
        yield f"total = tl.where(steady, total, {_ALL_SUMS})"
        yield f"largest = tl.maximum(peak, tl.max(scores, 1){scale})"
        yield "new_peak = tl.where(keeps, peak, largest)"
        yield f"weights = tl.exp2(scores{scale} - new_peak[:, None])"
        yield "decay = tl.exp2(peak - new_peak)"
        yield "sums = tl.where(steady, sums + own_sums(weights), 0.0)"
        yield "total = total * decay + tl.where(keeps, 0.0, tl.sum(weights, 1))"
        yield "peak = new_peak"

    def _steady(self) -> str:
        """Does the tile at `step` of all keep the peak in its loop?"""
        return " | ".join(
            f"({self._visited.after_first(number)})"
            for number, loop in enumerate(self._visited.loops)
            if loop.kind != "partial"
        )
