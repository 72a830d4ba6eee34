"""The forward kernel in Gluon whose programs compute several query tiles, one after another.

An item is a query tile of a head; `walk` says which a program has. The loading warp goes on to the
next item while this one is being computed, as far as its rings have stages. A warpgroup asks for
the first scores of an item and then for the last values of the one before, as between two tiles,
and stores that one's rows while its own first weights are multiplied.

Barriers, besides those of the rings: `query_ready` counts the bytes of a query tile, `query_free`
that its warpgroup reads it no more. The query has two places that take turns, and the output leaves
from a place of its own; its copy is waited for before the next one is written there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.gluon.access_source import GluonAccess
from patterncc.codegen.gpu.gluon.forward_writer import ForwardWriter
from patterncc.codegen.gpu.gluon.reasons import walking_reason
from patterncc.codegen.gpu.gluon.walk import HEADS, PARAMETERS, turn_lines
from patterncc.codegen.gpu.gluon.warps import QUERY_PLACES, ROWS
from patterncc.codegen.gpu.kernel_text import INDENT
from patterncc.dsl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from patterncc.codegen.gpu.kernel_source import KernelParameter

_DONE = "done_"
"""What the names of an item's scalars start with while the next one is begun."""

_RING_START = ("stage = STAGES - 1", "phase = 1")
"""Before the first tile: the stage after this one is the first, in its first phase."""


class WalkingWriter(ForwardWriter):
    """Writes one such kernel; arguments as of `ForwardWriter`."""

    def _own_access(self) -> GluonAccess:
        tiling = self._program.tiling
        alone = not (self._resumes or self._hands_on)
        reason = walking_reason(self._program, self._problem, alone=alone)
        if reason is not None:
            raise ConfigError(f"query_tiles='many' is impossible: {reason}", ("one",))
        return GluonAccess(self._problem, self._config, tiling, hands_on=False, heads=HEADS)

    def _own_scalars(self) -> Iterable[KernelParameter]:
        return PARAMETERS

    def _tile_counts(self) -> dict[str, str]:
        computing = self._warps.computing
        counts = {**super()._tile_counts(), "query": f"{computing * QUERY_PLACES}"}
        return {**counts, "out": f"{computing}"}

    def _query_barriers(self) -> tuple[str, ...]:
        return ("query_ready", "query_free")

    @property
    def _query_number(self) -> str:
        return f"query_slot * {self._warps.computing} + part"

    # -------------------------------------------------------------------------------- loading

    def _load_tiles(self) -> Iterator[str]:
        """The warp that copies tiles into shared memory."""
        visited = self._visited
        yield from turn_lines()
        yield from _RING_START
        yield "for turn in range(0, turns):"
        yield from (INDENT + line for line in visited.bounds())
        yield ""
        yield from (INDENT + line for line in self._copy_query())
        yield f"{INDENT}# Of a barrier that nothing has reached, the phase before is over."
        first = (visited.first(), *self._copy_next())
        yield from (INDENT + line for line in first)
        for number in range(len(visited.loops)):
            yield INDENT + visited.rest(number)
            body = (visited.start(number), *self._copy_next())
            yield from (INDENT * 2 + line for line in body)

    def _copy_query(self) -> Iterator[str]:
        """Copies the query tile of the item, as soon as its place is free."""
        access = self._access
        yield from self._query_place()
        yield f"for part in tl.static_range({self._warps.computing}):"
        number, box = self._query_number, access.box("query")
        yield f"{INDENT}wait(query_free.index({number}), query_phase ^ 1)"
        yield f"{INDENT}expect_bytes(query_ready.index({number}), {access.box_bytes('query')})"
        place = f"[batch, head, row_first + part * {box[2]}, 0]"
        tile = f"query_ready.index({number}), query_tiles.index({number})"
        yield f"{INDENT}copy_in(query_desc_0, {place}, {tile})"

    def _query_place(self) -> Iterator[str]:
        """Where the query tile of the item at `turn` lies, and the phase of its barriers."""
        yield f"query_slot = turn % {QUERY_PLACES}"
        yield f"query_phase = (turn // {QUERY_PLACES}) & 1"

    def _copy_next(self) -> Iterator[str]:
        """Copies the tiles of keys and values at `k_first` into the next stage."""
        yield self._access.box_start()
        yield "stage, phase = following(stage, phase)"
        yield from self._copy(waits=True)

    # -------------------------------------------------------------------------------- computing

    def _attend(self) -> Iterator[str]:
        yield from turn_lines()
        yield from _RING_START
        yield from self._mask.before_loops(always=self._terms.reads_key)
        yield from self._at_start()
        yield "for turn in range(0, turns):"
        yield from (INDENT + line for line in self._item())
        yield ""
        yield "# The values of the last tile of all."
        yield from self._last_values()
        yield f"{_DONE}peak, {_DONE}total = peak, total"
        yield from self._finish_before()
        yield "copied_out(0)"

    def _at_start(self) -> Iterator[str]:
        """What is carried from item to item."""
        width = self._problem.value_head_dim
        yield f"no_scores = tl.full([{ROWS}, BLOCK_K], 0.0, tl.float32, layout=SCORES)"
        yield self._no_out()
        yield "weights = no_scores"
        yield f"peak = tl.full([{ROWS}], 0.0, tl.float32, layout=tl.SliceLayout(1, SCORES))"
        yield "total = peak"
        for name in self._access.held():
            yield f"{_DONE}{name} = 0"
        yield f"outgoing = out_tiles.index(part).reshape([{ROWS}, {width}])"

    def _item(self) -> Iterator[str]:
        """One turn: the end of the item before, as soon as the scores of this one's first tile are
        on their way; then its other tiles."""
        yield from self._rows()
        yield ""
        yield from self._query()
        yield from self._between_items()
        yield self._no_out()
        yield from self._loops()
        yield ""
        yield f"arrive(query_free.index({self._query_number}))"
        for name in self._access.held():
            yield f"{_DONE}{name} = {name}"

    def _query(self) -> Iterator[str]:
        """The item's query tile, as the products read it."""
        yield from self._query_place()
        shape = f"[{ROWS}, {self._problem.head_dim}]"
        yield f"query = query_tiles.index({self._query_number}).reshape({shape})"
        yield f"wait(query_ready.index({self._query_number}), query_phase)"
        yield from self._query_operand()

    def _between_items(self) -> Iterator[str]:
        """The first tile of an item, and the last values of the one before; in the first turn
        weights of 0 for the item's own first values instead. No product stands in a branch: ptxas
        12.8 takes what products of both sides share for computed where it is not."""
        yield "# The last values of the item before are multiplied below the first scores."
        yield "before = turn > 0"
        yield "last, last_phase = stage, phase"
        yield "stage, phase = following(stage, phase)"
        yield "last = tl.where(before, last, stage)"
        yield "last_phase = tl.where(before, last_phase, phase)"
        yield self._rounded()
        yield "wait(key_ready.index(stage), phase)"
        yield self._ask_scores()
        yield "wait(value_ready.index(last), last_phase)"
        yield self._add_values("last")
        yield "scores = finish(1, deps=(scores,))"
        yield "arrive(key_free.index(stage))"
        yield f"{_DONE}peak, {_DONE}total = peak, total"
        yield from self._first_weights()
        yield "out = finish(0, deps=(out,))"
        yield "arrive(value_free.index(last), pred=before)"
        yield "if before:"
        yield from (INDENT + line for line in self._finish_before())

    def _finish_before(self) -> Iterator[str]:
        """The results of the item before."""
        access = self._access
        yield from self._normalised(_DONE)
        yield access.row_numbers_address("lse", _DONE)
        yield from self._log_total(_DONE)
        yield from access.store_row_numbers("lse", _DONE)
        yield "# The tile before has long left."
        yield "copied_out(0)"
        yield f"outgoing.store(out.to(tl.{self._problem.dtype}))"
        yield "show_to_copies()"
        place = f"[{_DONE}batch, {_DONE}head, {_DONE}row_first + part * {ROWS}, 0]"
        yield f"copy_out(out_desc_0, {place}, out_tiles.index(part))"
