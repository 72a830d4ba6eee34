"""The Gluon kernel of all gradients in one pass: warpgroups that compute, a warp that loads.

A program computes the gradients of a key tile of one head of the keys, 64 keys by each of two
warpgroups, while tiles of queries and of the output's gradient pass by. With transposed tiles:

    scores^T  = k q^T                   weights^T = 2^(scores^T scale - row_lse)
    grad_v   += weights^T grad_out      grad_scores^T = weights^T (v grad_out^T - delta)
    grad_k   += grad_scores^T q         grad_q += grad_scores k

Five products, where kernels of their own for queries and for keys compute seven: scores and their
gradient once. But many programs add to one row of `grad_q`, in an order that nobody fixes: sums of
float32 that another kernel scales and rounds (`query_sum_source`).

Where repeated calls must give the same bits, key tiles add in turn, and two more warps wait for
that and add (`turn_source`).

The last product takes the gradients of scores of both warpgroups, which go through shared memory;
each computes half of it, its share, for the tile before. So the warpgroups wait for each other only
long after they have left what the other one reads. A share is left in shared memory, from where the
copy engine adds it. Scores are asked for a tile ahead, as soon as the registers of the share are
free, so that tensor cores are busy while it is added.

At head dimension 64 products are so small that shared memory, which brings both operands, would
be slower than the tensor cores. There the gradients leave room in registers for the keys and values
of a warpgroup, and for all transposed keys: the share is `k^T grad_scores^T`, of half of the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.chunk_source import CHUNK_HELPERS
from patterncc.codegen.gpu.gluon.dialect import (
    ADD_OUT,
    LEAVE_SHARE,
    function_text,
    gluon_functions,
    number_layout,
    product_layout,
    store_layout,
    tile_layout,
)
from patterncc.codegen.gpu.gluon.gradient_access_source import ADDED, GradientAccess
from patterncc.codegen.gpu.gluon.gradient_copy_source import CopyingWarps
from patterncc.codegen.gpu.gluon.gradient_tiles import RINGS, STAGE, STAGES, ComputedKeyTile
from patterncc.codegen.gpu.gluon.module_source import EMITTER, gluon_module, start_lines
from patterncc.codegen.gpu.gluon.reasons import one_pass_reason
from patterncc.codegen.gpu.gluon.turn_source import TURN_FUNCTIONS, in_launch_order
from patterncc.codegen.gpu.gluon.warps import ROWS, warps_of
from patterncc.codegen.gpu.kernel_source import KernelParameter, KernelSource
from patterncc.codegen.gpu.kernel_text import (
    INDENT,
    described_fields,
    header_text,
)
from patterncc.codegen.gpu.key_access_source import HELD, RESULTS
from patterncc.codegen.gpu.query_sum_source import LINE, computes_transposed
from patterncc.codegen.gpu.tile_source import check_program
from patterncc.dsl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.sweep_source import TileLoop
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem
    from patterncc.codegen.turns import Turns

_TILES = ("query", "grad_out", "row_lse", "row_delta", *HELD)

_ONE_ARRIVES = ("held_ready", "query_ready", "grad_out_ready", "share_free")
"""Filled by copies, or by the warp that adds; at the others warpgroups arrive."""

_BARRIERS = ("held_ready", "query_ready", "grad_out_ready", "rows_free", "grad_scores_ready")
_SHARE_BARRIERS = ("share_ready", "share_free")


def emit_gluon_gradients(
    program: BlockProgram,
    problem: Problem,
    config: KernelConfig,
    turns: Turns | None = None,
    *,
    first_stores: bool = False,
    split: bool = False,
) -> KernelSource:
    """Writes the kernel of all gradients, for any lengths, offset, strides and numbers.

    Args:
        program: The pattern, with its transposed sweeps.
        problem: The shape class.
        config: How to build it; `block_k` keys are held while `block_q` rows at a time pass by.
        turns: In which order key tiles add to the query's gradient; None: in any.
        first_stores: Does the first of them store instead, into sums that nobody has cleared?
        split: Are chunks of key tiles at the places of these in the grid (`turn_place_lines`)? So
            it must be in turn, if there are any.

    Raises:
        UnsupportedError: The dtype or head dimension has no kernel, or the pattern has a cover.
        ConfigError: The config's tiles are not the program's, or Gluon has no kernel for the
            program.
        InternalError: The program was lowered for the forward direction alone.
    """
    return _Writer(program, problem, config, turns, first_stores, split).source()


class _Writer:
    """Writes one kernel: the function of the loading warp, that of a computing warpgroup, and the
    one that starts both."""

    def __init__(
        self,
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        turns: Turns | None,
        first_stores: bool,
        split: bool,
    ) -> None:
        check_program(program, problem, config)
        reason = one_pass_reason(program, problem)
        if reason is not None:
            raise ConfigError(f"gradients in one pass are impossible: {reason}", ("two kernels",))
        self._turns = turns
        self._program = program
        self._problem = problem
        self._config = config
        self._warps = warps_of(config)
        self._narrow = computes_transposed(problem.head_dim)
        whole = (config.block_q, problem.head_dim)
        rows, columns = whole[::-1] if self._narrow else whole
        self._share = (rows, columns // self._warps.computing)
        chunk = "sums_place" if split else "tl.program_id(0)"
        self._access = GradientAccess(problem, config, counts=turns is not None, chunk=chunk)
        self._computed = ComputedKeyTile(program, problem, config, self._access, turns, split)
        self._lanes = tuple(self._computed.lanes())
        parts = self._warps.computing
        self._copying = CopyingWarps(
            program, problem, config, self._access, turns, first_stores, split, parts, self._lanes
        )
        self._barriers = (*_BARRIERS, *(_SHARE_BARRIERS if turns is not None else ()))
        factors = [KernelParameter("score_scale", "fp32"), KernelParameter("scale", "fp32")]
        self._parameters = tuple(self._computed.parameters([], factors))

    def source(self) -> KernelSource:
        fields = described_fields(
            self._program, self._problem, self._config, EMITTER, resumes=False, hands_on=False
        )
        names = [parameter.name for parameter in self._parameters]
        shared = [
            *(f"{name}_tiles" for name in _TILES),
            "grad_scores_tiles",
            "share_tiles",
            *self._barriers,
        ]
        added = f"{ADDED}_desc_0"
        load = [*(n for n in names if n != added), *shared]
        compute = [*(n for n in names if n == added or "_desc_" not in n), *shared]
        functions = [
            ADD_OUT,
            LEAVE_SHARE,
            gluon_functions(CHUNK_HELPERS),
            *self._of_turns(compute),
            self._function("load_tiles", load, self._copying.load_tiles()),
            self._function(
                "differentiate", [*compute, "part: tl.constexpr"], self._differentiate()
            ),
            function_text("gradients", names, self._gradients(load, compute)),
        ]
        header = header_text("Gradients in one pass", fields)
        return KernelSource(
            "gradients",
            gluon_module(header, self._constants(), functions),
            self._parameters,
            self._problem,
            self._config,
            self._computed.tables,
        )

    def _function(self, name: str, parameters: Iterable[str], lines: Iterable[str]) -> str:
        text = function_text(name, parameters, lines)
        return in_launch_order(text, self._turns, self._config.neighbours)

    def _of_turns(self, names: Iterable[str]) -> Iterator[str]:
        """The functions of the warp that adds, if there is one."""
        if self._turns is not None:
            yield TURN_FUNCTIONS
            parameters = [*names, "which: tl.constexpr"]
            yield self._function("add_shares", parameters, self._copying.add_shares(self._turns))

    def _constants(self) -> dict[str, object]:
        """What the functions know at compile time."""
        width, config = self._problem.head_dim, self._config
        share = product_layout(self._share[1])
        factors = {
            "PAIR_FACTORS": f"tl.DotOperandLayout(0, {product_layout(config.block_q)}, 2)",
            "SHARE_FACTORS": f"tl.DotOperandLayout(0, {share}, 2)",
        }
        return {
            "BLOCK_Q": config.block_q,
            "BLOCK_K": config.block_k,
            "STAGES": STAGES,
            "SCORES": product_layout(config.block_q),
            "GRADIENT": product_layout(width),
            "FACTORS": f"tl.DotOperandLayout(0, {product_layout(width)}, 2)",
            "SHARE": share,
            **(factors if self._narrow else {}),
            "NOWHERE": 1 << 30,
            "STORED": store_layout(width),
        }

    # -------------------------------------------------------------------------------- the kernel

    def _gradients(self, load: Iterable[str], compute: Iterable[str]) -> Iterator[str]:
        """Allocates what the warps share and starts them."""
        warps, access = self._warps, self._access
        dtype = f"tl.{self._problem.dtype}"
        for name in _TILES:
            box = access.box(name)
            count = f"{warps.computing}" if name in HELD else "STAGES"
            numbers = name in RINGS.values()
            shape = f"[{count}, {', '.join(map(str, box))}]"
            layout = number_layout(box) if numbers else tile_layout(box)
            kind = "tl.float32" if numbers else dtype
            yield f"{name}_tiles = allocate({kind}, {shape}, {layout})"
        pair = (ROWS, self._config.block_q)
        shape = f"[{STAGES * warps.computing}, {pair[0]}, {pair[1]}]"
        yield f"grad_scores_tiles = allocate({dtype}, {shape}, {tile_layout(pair)})"
        box = access.box(ADDED)
        shares = warps.computing * (1 if self._turns is None else STAGES)
        shape = f"[{shares}, {', '.join(map(str, box))}]"
        yield f"share_tiles = allocate(tl.float32, {shape}, {number_layout(box)})"
        for name in self._barriers:
            yield f"{name} = allocate(tl.int64, [{self._stages(name)}, 1], BARRIER)"
        for name in self._barriers:
            arrivals = 1 if name in _ONE_ARRIVES else warps.computing
            yield f"for stage in tl.static_range({self._stages(name)}):"
            yield f"{INDENT}init_barrier({name}.index(stage), count={arrivals})"
        add = compute if self._turns is not None else ()
        yield from start_lines("differentiate", compute, load, warps, add)

    def _stages(self, barrier: str) -> str:
        return "1" if barrier == "held_ready" else "STAGES"

    # -------------------------------------------------------------------------------- computing

    def _differentiate(self) -> Iterator[str]:
        """A warpgroup that computes the gradients of 64 keys, and its share of the query's."""
        width = self._problem.head_dim
        yield from self._lanes
        yield from self._computed.setup()
        yield ""
        for name in HELD:
            yield f"{name} = {name}_tiles.index(part).reshape([{ROWS}, {width}])"
        if self._turns is None:
            yield self._share_tile("part")
        yield f"no_scores = tl.full([{ROWS}, BLOCK_Q], 0.0, tl.float32, layout=SCORES)"
        share = ", ".join(map(str, self._share))
        yield f"no_share = tl.full([{share}], 0.0, tl.float32, layout=SHARE)"
        for name in RESULTS:
            yield f"{name} = tl.full([{ROWS}, {width}], 0.0, tl.float32, layout=GRADIENT)"
        if self._turns is None:
            yield "# Where the share of the tile before is added: before the first nowhere."
            yield "last_line = NOWHERE"
        yield "visited = 0"
        yield "wait(held_ready.index(0), 0)"
        yield from self._held_operands()
        yield "wait(query_ready.index(0), 0)"
        yield self._ask_scores("0")
        yield "scores = finish(0, deps=(scores,))"
        yield from self._computed.body(self._tile)
        yield ""
        yield "# The share of the last tile."
        yield from STAGE
        yield from self._ask_share()
        yield from self._free_share_tile()
        yield "grad_query = finish(0, deps=(grad_query,))"
        yield "leave_share(grad_query, share_tile)"
        yield "show_to_copies()"
        yield "synchronize()"
        yield from self._add_share()
        if self._turns is None:
            yield "copied_out(0)"
        yield from self._finish()

    def _held_operands(self) -> Iterator[str]:
        """What products take of the keys and values: in registers where these have room."""
        width, share = self._problem.head_dim, self._share[1]
        for part in range(self._warps.computing):
            tile = f"key_tiles.index({part}).reshape([{ROWS}, {width}])"
            if self._narrow:
                yield f"key_share_{part} = {tile}.permute((1, 0)).load(SHARE_FACTORS)"
            else:
                yield f"key_share_{part} = {tile}.slice(part * {share}, {share}, dim=1)"
        if self._narrow:
            for name in HELD:
                yield f"{name}_factors = {name}.load(PAIR_FACTORS)"

    def _ask_share(self) -> Iterator[str]:
        """Asks for the share of the query's gradient of the tile before."""
        yield "wait(grad_scores_ready.index(other), phase ^ other)"
        acc, use, parts = "no_share", ", use_acc=False", self._warps.computing
        share = self._share[1]
        for part in range(parts):
            tile = f"grad_scores_tiles.index(other * {parts} + {part})"
            operands = f"{tile}.permute((1, 0)), key_share_{part}, {acc}"
            if self._narrow:
                tile = f"{tile}.slice(part * {share}, {share}, dim=1)"
                operands = f"key_share_{part}, {tile}, {acc}"
            yield f"grad_query = multiply({operands}{use}, is_async=True)"
            acc, use = "grad_query", ""

    def _share_tile(self, number: str) -> str:
        *_, lines, line = self._access.box(ADDED)
        return f"share_tile = share_tiles.index({number}).reshape([{lines}, {line}])"

    def _free_share_tile(self) -> Iterator[str]:
        """Waits until the copy engine has read the share before, so that all threads may write."""
        if self._turns is not None:
            yield "wait(share_free.index(stage), phase ^ 1)"
            yield self._share_tile(f"stage * {self._warps.computing} + part")
            return
        yield "copied_out(0)"
        yield "synchronize()"

    def _add_share(self) -> Iterator[str]:
        """Adds the share in shared memory, which the copy engine sees, to the sums, or leaves that
        to the warp that adds."""
        if self._turns is not None:
            yield "arrive(share_ready.index(stage))"
            return
        lines = self._access.box(ADDED)[2]
        place = f"[0, 0, last_line + part * {lines}, 0]"
        yield f"add_out({ADDED}_desc_0, {place}, share_tiles.index(part))"

    def _tile(self, loop: TileLoop) -> Iterator[str]:
        """What is computed of a tile of rows, whose scores are there."""
        width, dtype = self._problem.head_dim, self._problem.dtype
        yield from STAGE
        for name in RINGS:
            yield f"{name} = {name}_tiles.index(stage).reshape([BLOCK_Q, {width}])"
        yield "wait(grad_out_ready.index(stage), phase)"
        values = "value_factors"
        if not self._narrow:
            # Always 0, which the compiler does not know: it computes where the values lie in each
            # step, and does not keep all their places in registers, of which there are not enough.
            values = f"value_tiles.index(part + (visited >> 30)).reshape([{ROWS}, {width}])"
        yield self._ask_pairs("grad_weights", values, "grad_out")
        yield self._row_numbers("row_lse")
        yield "scores = scores * score_scale - row_lse[None, :]"
        if loop.kind == "partial":
            yield from self._computed.tile_mask.masked_scores()
        yield "weights = tl.exp2(scores)"
        yield f"factors = tl.convert_layout(weights.to(tl.{dtype}), FACTORS)"
        yield "grad_value = multiply(factors, grad_out, grad_value, is_async=True)"
        yield "grad_weights = finish(1, deps=(grad_weights,))"
        yield self._row_numbers("row_delta")
        yield "grad_scores = weights * (grad_weights - row_delta[None, :])"
        yield f"grad_scores = grad_scores.to(tl.{dtype})"
        yield from self._ask_share()
        yield "factors = tl.convert_layout(grad_scores, FACTORS)"
        yield "grad_key = multiply(factors, query, grad_key, is_async=True)"
        yield from self._free_share_tile()
        yield f"grad_scores_tiles.index(stage * {self._warps.computing} + part).store(grad_scores)"
        yield "grad_value, grad_query = finish(1, deps=(grad_value, grad_query))"
        yield "leave_share(grad_query, share_tile)"
        yield "wait(query_ready.index(other), phase ^ stage)"
        yield self._ask_scores("other")
        yield "show_to_copies()"
        yield "synchronize()"
        yield "arrive(grad_scores_ready.index(stage))"
        yield from self._add_share()
        yield "grad_key, scores = finish(0, deps=(grad_key, scores))"
        yield "arrive(rows_free.index(stage))"
        if self._turns is None:
            yield f"last_line = head_line + row_first // {LINE // width}"
        yield "visited += 1"

    def _ask_scores(self, stage: str) -> str:
        tile = f"query_tiles.index({stage}).reshape([BLOCK_Q, {self._problem.head_dim}])"
        return self._ask_pairs("scores", "key_factors" if self._narrow else "key", tile)

    def _ask_pairs(self, result: str, held: str, passing: str) -> str:
        operands = f"{held}, {passing}.permute((1, 0)), no_scores"
        return f"{result} = multiply({operands}, use_acc=False, is_async=True)"

    def _row_numbers(self, name: str) -> str:
        tile = f"{name}_tiles.index(stage).reshape([BLOCK_Q])"
        return f"{name} = {tile}.load(tl.SliceLayout(0, SCORES))"

    # -------------------------------------------------------------------------------- the end

    def _finish(self) -> Iterator[str]:
        yield ""
        yield "if split:"
        yield f"{INDENT}# A chunk: its sums are added up later."
        yield from (f"{INDENT}{line}" for line in self._access.store_sums())
        yield "else:"
        yield from (f"{INDENT}{line}" for line in self._access.store_results())
