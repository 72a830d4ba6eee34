"""The forward kernel in Gluon: warpgroups that compute, and a warp that loads for them.

A program computes a query tile of one head, 64 rows by each warpgroup. One more warp copies tiles
of keys and values into two rings of shared memory, as far ahead as they have stages; barriers say
which stages are ready and which are free again. A warpgroup asks for the scores of the next tile
and for the weighted values of the last one, and computes weights as soon as the scores are there,
while the values are still being multiplied.

The first tile stands before the loops, for no values come before it. It is masked whatever its
kind: a mask leaves full tiles as they are, and partial tiles come first, so it mostly is one. A
query tile without key tiles visits tile 0, of which the mask allows it nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.forward_source import PEAK_FLOOR
from patterncc.codegen.gpu.gluon.careful_writer import CarefulWriter
from patterncc.codegen.gpu.gluon.dialect import (
    FOLLOWING,
    NOTE,
    NOTES,
    function_text,
    product_layout,
    store_layout,
    tile_layout,
)
from patterncc.codegen.gpu.gluon.module_source import EMITTER, gluon_module, start_lines
from patterncc.codegen.gpu.gluon.warps import ROWS
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.kernel_text import (
    INDENT,
    described_fields,
    header_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


_TILES = ("query", "key", "value")
"""What is held in shared memory: the query of each warpgroup, and the rings."""

_RINGS = ("key_ready", "key_free", "value_ready", "value_free")
"""Barriers of each stage."""


class ForwardWriter(CarefulWriter):
    """Writes one kernel: the function of the loading warp, that of a computing warpgroup, and the
    one that starts both."""

    # -------------------------------------------------------------------------------- hooks

    def _computing_barriers(self) -> dict[str, tuple[int, int]]:
        """Barriers that the loading warp has nothing to do with, by name: how many, and how often
        each is arrived at."""
        return {}

    def _loaded(self) -> tuple[str, ...]:
        """The tensors whose descriptors no computing warpgroup needs."""
        return ("query", "key", "value")

    # -------------------------------------------------------------------------------- the text

    def source(self) -> KernelSource:
        fields = described_fields(
            self._program,
            self._problem,
            self._config,
            EMITTER,
            resumes=self._resumes,
            hands_on=self._hands_on,
        )
        names = [parameter.name for parameter in self._parameters]
        copied = [f"{name}_desc_0" for name in ("query", "key", "value")]
        loaded = [f"{name}_desc_0" for name in self._loaded()]
        shared = [*(f"{name}_tiles" for name in _TILES), *self._query_barrier(), *_RINGS]
        load = [*(n for n in names if n in copied or "_desc_" not in n), *shared]
        own = [*shared, *self._computing_barriers(), *(["spoiled"] if self._repairs else [])]
        attend = [*(n for n in names if n not in loaded), *own]
        repair = [*(n for n in names if n != "query_desc_0"), *(f"{name}_tiles" for name in _TILES)]
        repair += ["spoiled", "again_ready"]
        functions = [
            *self._helpers(),
            function_text("load_tiles", load, self._load_tiles()),
            function_text("attend", [*attend, "part: tl.constexpr"], self._attend()),
            *(self._careful_functions(repair) if self._repairs else ()),
            function_text("forward", names, self._forward(load, attend, repair)),
        ]
        header = header_text("Attention forward", fields)
        return KernelSource(
            "forward",
            gluon_module(header, self._constants(), functions),
            self._parameters,
            self._problem,
            self._config,
            self._computed.tables,
        )

    def _helpers(self) -> tuple[str, ...]:
        """The sources of functions that the kernel's own ones call."""
        return (FOLLOWING, *(self._careful_helpers() if self._repairs else ()))

    def _constants(self) -> dict[str, object]:
        """What the functions know at compile time."""
        problem, config = self._problem, self._config
        return {
            "BLOCK_Q": config.block_q,
            "BLOCK_K": config.block_k,
            "STAGES": config.num_stages,
            "SCORES": product_layout(config.block_k),
            "OUT": product_layout(problem.value_head_dim),
            "WEIGHTS": f"tl.DotOperandLayout(0, {product_layout(problem.value_head_dim)}, 2)",
            "QUERY": f"tl.DotOperandLayout(0, {product_layout(config.block_k)}, 2)",
            "STORED": store_layout(problem.value_head_dim),
            **({"NOTE": NOTE, "NOTES": NOTES} if self._repairs else {}),
        }

    # -------------------------------------------------------------------------------- the kernel

    def _forward(
        self, load: Iterable[str], attend: Iterable[str], repair: Sequence[str]
    ) -> Iterator[str]:
        """Allocates what the warps share and starts them."""
        warps = self._warps
        dtype = f"tl.{self._problem.dtype}"
        for name in _TILES:
            box = self._access.box(name)
            count = str(warps.computing) if name == "query" else "STAGES"
            shape = f"[{count}, {', '.join(map(str, box))}]"
            yield f"{name}_tiles = allocate({dtype}, {shape}, {tile_layout(box)})"
        for name in self._query_barrier():
            yield f"{name} = allocate(tl.int64, [{warps.computing}, 1], BARRIER)"
        for name in _RINGS:
            yield f"{name} = allocate(tl.int64, [STAGES, 1], BARRIER)"
        for name in self._query_barrier():
            yield f"for part in tl.static_range({warps.computing}):"
            yield f"{INDENT}init_barrier({name}.index(part), count=1)"
        yield "for stage in tl.static_range(STAGES):"
        for name in _RINGS:
            arrivals = warps.computing if name.endswith("free") else 1
            yield f"{INDENT}init_barrier({name}.index(stage), count={arrivals})"
        for name, (number, arrivals) in self._computing_barriers().items():
            yield f"{name} = allocate(tl.int64, [{number}, 1], BARRIER)"
            yield f"for part in tl.static_range({number}):"
            yield f"{INDENT}init_barrier({name}.index(part), count={arrivals})"
        if self._repairs:
            yield f"spoiled = allocate(tl.int32, [{warps.computing}, 1], NOTES)"
            yield "again_ready = allocate(tl.int64, [1, 1], BARRIER)"
            yield "init_barrier(again_ready.index(0), count=1)"
        yield from start_lines("attend", attend, load, warps)
        if self._repairs:
            yield from self._repair_lines(repair)

    def _query_barrier(self) -> tuple[str, ...]:
        """The barrier of each warpgroup's query, where a copy brings it. Rows that come by pointers
        have none: of one that nobody waits for Triton gives the place to something else, such as a
        maximum over a warpgroup, which no `mbarrier` may be stored over."""
        return ("query_ready",) if self._access.describes_rows else ()

    # -------------------------------------------------------------------------------- loading

    def _load_tiles(self) -> Iterator[str]:
        """The warp that copies tiles into shared memory."""
        access, visited = self._access, self._visited
        yield from visited.bounds()
        yield ""
        if access.describes_rows:
            yield f"for part in tl.static_range({self._warps.computing}):"
            box = access.box("query")
            yield f"{INDENT}expect_bytes(query_ready.index(part), {access.box_bytes('query')})"
            place = f"[batch, head, row_first + part * {box[2]}, 0]"
            tile = "query_ready.index(part), query_tiles.index(part)"
            yield f"{INDENT}copy_in(query_desc_0, {place}, {tile})"
        yield "# A stage is free at first: to wait for the phase before says so."
        yield visited.first()
        yield access.box_start()
        yield "stage = 0"
        yield "phase = 0"
        yield from self._copy(waits=False)
        for number in range(len(visited.loops)):
            yield visited.rest(number)
            body = (
                visited.start(number),
                access.box_start(),
                "stage, phase = following(stage, phase)",
                *self._copy(waits=True),
            )
            yield from (INDENT + line for line in body)

    def _copy(self, *, waits: bool) -> Iterator[str]:
        """Copies the tiles of keys and values at `k_box` into a stage."""
        for name in ("key", "value"):
            if waits:
                yield f"wait({name}_free.index(stage), phase ^ 1)"
            ready = f"{name}_ready.index(stage)"
            yield f"expect_bytes({ready}, {self._access.box_bytes(name)})"
            place = self._access.key_place()
            yield f"copy_in({name}_desc_0, {place}, {ready}, {name}_tiles.index(stage))"

    # -------------------------------------------------------------------------------- computing

    def _attend(self) -> Iterator[str]:
        """A warpgroup that computes 64 rows."""
        access = self._access
        head_dim = self._problem.head_dim
        yield from self._rows()
        yield from self._mask.before_loops(always=self._terms.reads_key)
        yield ""
        yield f"query = query_tiles.index(part).reshape([{ROWS}, {head_dim}])"
        if access.describes_rows:
            yield "wait(query_ready.index(part), 0)"
        else:
            yield from access.load_query()
        yield from self._query_operand()
        yield f"no_scores = tl.full([{ROWS}, BLOCK_K], 0.0, tl.float32, layout=SCORES)"
        yield from self._first_tile()
        yield from self._loops()
        yield ""
        yield "# The values of the last tile."
        yield from self._last_values()
        yield from self._finish()

    def _loops(self) -> Iterator[str]:
        """All tiles but the very first."""
        for number, loop in enumerate(self._visited.loops):
            yield ""
            masked = loop.kind == "partial"
            yield "# Partial tiles, with the mask." if masked else "# Full tiles."
            yield self._visited.rest(number)
            yield from (INDENT + line for line in self._tile(number, masked=masked))

    def _last_values(self) -> Iterator[str]:
        yield self._rounded()
        yield "wait(value_ready.index(stage), phase)"
        yield self._add_values("stage")
        yield "out = finish(0, deps=(out,))"

    def _first_tile(self) -> Iterator[str]:
        yield ""
        yield "# The first tile."
        yield "stage = 0"
        yield "phase = 0"
        yield "wait(key_ready.index(0), 0)"
        yield self._ask_scores()
        yield "scores = finish(0, deps=(scores,))"
        yield "arrive(key_free.index(0))"
        if self._resumes:
            yield from self._first_weights(self._access.load_state())
            yield self._decayed()
        else:
            yield from self._first_weights()
            yield self._no_out()
        yield from self._keep_weights()

    def _first_weights(self, before: Iterable[str] = ()) -> Iterator[str]:
        """The weights of the first tile: masked, and after what earlier passes left.

        Args:
            before: Lines before the weights, where there were earlier passes.
        """
        yield self._visited.first()
        yield self._access.box_start()
        yield from self._logits()
        yield from self._mask.masked_scores()
        if self._resumes:
            yield self._access.row_numbers_address("lse")
            yield from self._earlier_passes()
            yield from before
            yield from self._weights()
            return
        if self._terms.has_sink:
            yield from self._terms.start()
            yield from self._weights()
            return
        scale = self._terms.scale
        yield f"peak = tl.maximum(tl.max(scores, 1){scale}, {PEAK_FLOOR})"
        yield f"weights = tl.exp2(scores{scale} - peak[:, None])"
        yield "total = tl.sum(weights, 1)"

    def _tile(self, number: int, *, masked: bool) -> Iterator[str]:
        yield from self._scores(number, masked=masked)
        yield from self._weights()
        yield "out = finish(0, deps=(out,))"
        yield from self._keep_weights()
        yield "arrive(value_free.index(last))"
        yield self._decayed()

    def _scores(self, number: int, *, masked: bool) -> Iterator[str]:
        """The next tile's scores, while the last one's values are being multiplied."""
        yield "last, last_phase = stage, phase"
        yield "stage, phase = following(stage, phase)"
        yield self._rounded()
        yield "wait(key_ready.index(stage), phase)"
        yield self._ask_scores()
        yield "wait(value_ready.index(last), last_phase)"
        yield self._add_values("last")
        yield "scores = finish(1, deps=(scores,))"
        yield "arrive(key_free.index(stage))"
        if masked or self._terms.reads_key:
            yield self._visited.start(number)
            yield self._access.box_start()
        yield from self._logits()
        if masked:
            yield from self._mask.masked_scores()
