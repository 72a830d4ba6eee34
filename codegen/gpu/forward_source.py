"""The forward kernel: a program computes one query tile of one head by an online softmax.

Two loops: first all partial tiles, with the mask, then all full tiles, without any mask code.
Scores live in the base-2 logarithm's domain. `peak` starts at a finite floor and masked scores are
minus infinity, so a row whose tiles so far held no key for it has weights of exactly 0: no guard is
needed in the loop, and `total` stays 0 for rows without keys. The order of statements in a tile
matters: it lets the product with the values run on while the next scores are computed.

Score terms make a logit of each score before the mask; a sink is a key of value 0 that a row
starts from. A pattern of several passes has a kernel for each. All but the last leave their output
in float32 and the base-2 logarithm of the sum; all but the first start from there, as from one key
of weight 1 whose score is that logarithm and whose value is that output. That merge is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.access_source import Access
from patterncc.codegen.gpu.isolation_source import (
    GRID_PARAMETERS,
    REPAIR_HELPERS,
    SPOILED,
    SPOILED_HELPERS,
    all_tiles_loop,
    columns_at_once,
    columns_lines,
    parts_of,
    repair_config,
    repair_lines,
    spoiled_lines,
    unsettled_text,
)
from patterncc.codegen.gpu.kernel_source import KernelParameter, KernelSource
from patterncc.codegen.gpu.kernel_terms import corners_of, sink_logit, tile_logit
from patterncc.codegen.gpu.kernel_text import INDENT, described_fields, header_text, module_text
from patterncc.codegen.gpu.query_tile_source import QueryTile
from patterncc.codegen.gpu.score_source import TermWriter
from patterncc.codegen.gpu.tile_source import check_program, dot_precision, product_lines
from patterncc.dsl.score.nodes import coordinates_read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.sweep_source import TileLoop
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem

EMITTER = 1
"""Version of the generated text; it is part of the text, so a change of it separates caches."""

PEAK_FLOOR = -1.0e38
"""Where `peak` starts: below any score that occurs; finite, so that `-inf - peak` is never NaN."""

_NOTHING = 'float("-inf")'


def emit_forward(
    program: BlockProgram,
    problem: Problem,
    config: KernelConfig,
    *,
    resumes: bool = False,
    hands_on: bool = False,
) -> KernelSource:
    """Writes the forward kernel of a lowered pattern, for any lengths, offset, strides and numbers.

    Args:
        program: The pattern, or one pass of it.
        problem: The shape class.
        config: How to build it.
        resumes: It starts from what an earlier pass left.
        hands_on: It leaves its result for a later pass, instead of the output.

    Raises:
        UnsupportedError: The dtype or head dimension has no kernel, or the pattern has a cover.
        ConfigError: The config's tiles are not the program's.
    """
    return _ForwardWriter(program, problem, config, resumes, hands_on).source()


def emit_forward_repair(
    program: BlockProgram,
    problem: Problem,
    config: KernelConfig,
    *,
    resumes: bool = False,
    hands_on: bool = False,
) -> KernelSource:
    """Writes the kernel that repairs what `emit_forward` with the same arguments has spoiled."""
    return _RepairWriter(program, problem, config, resumes, hands_on).source()


class _ForwardWriter:
    """Writes one kernel; each method writes one stretch of it, in the order of the text."""

    def __init__(
        self,
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        resumes: bool,
        hands_on: bool,
        *,
        boxes: bool = False,
    ) -> None:
        check_program(program, problem, config)
        self._program = program
        self._problem = problem
        self._config = config
        self._resumes = resumes
        self._hands_on = hands_on
        gathered = program.gathered > 1
        self._access = Access(
            problem,
            config,
            program.tiling,
            gathered=gathered,
            patches=program.patches,
            boxes=boxes and not gathered,
        )
        self._logit = tile_logit(problem.terms, program.tiling)
        # Of several passes the first one starts from the sink, as from an earlier key.
        self._sink = None if resumes else sink_logit(problem.terms, program.tiling)
        self._rows = QueryTile(
            program,
            problem,
            config,
            self._access,
            () if self._logit is None else (self._logit,),
            () if self._sink is None else (self._sink,),
        )
        self._logits, self._term_lines = self._written_terms()
        self._precision = dot_precision(problem)
        self._lines: list[str] = []

    def source(self) -> KernelSource:
        parameters = tuple(self._parameters())
        self._write(*self._rows.blocks(), *self._rows.setup(), *self._term_lines)
        self._write("", *self._access.row_tile_lines(), *self._access.key_lines(), "")
        self._write(*self._state_address(), *self._start(), *self._start_sums())
        for loop in self._rows.loops:
            self._write(*self._rows.loop_head(loop))
            self._write(*self._tile(loop), depth=1)
        self._finish()
        helpers = (SPOILED_HELPERS,) if self._rows.notes else ()
        return self._module("forward", "Attention forward", parameters, helpers)

    def _module(
        self,
        name: str,
        title: str,
        parameters: tuple[KernelParameter, ...],
        helpers: tuple[str, ...],
    ) -> KernelSource:
        fields = described_fields(
            self._program,
            self._problem,
            self._config,
            EMITTER,
            resumes=self._resumes,
            hands_on=self._hands_on,
        )
        text = module_text(header_text(title, fields), name, parameters, self._lines, helpers)
        tables = self._rows.tables
        return KernelSource(name, text, parameters, self._problem, self._config, tables)

    def _parameters(self) -> Iterator[KernelParameter]:
        pointers = [KernelParameter("lse_ptr", "*fp32", 4)]
        if self._resumes or self._hands_on:
            pointers.append(KernelParameter("state_ptr", "*fp32", 16))
        if self._rows.notes:
            pointers.append(SPOILED)
        scale = [KernelParameter("scale", "fp32")] if self._logit is None else []
        return self._rows.parameters(pointers, scale)

    def _written_terms(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What turns a tile's scores into logits, and what that needs before the loops."""
        if self._logit is None:
            return (), ()
        corners = corners_of(self._program, "[BLOCK_Q, BLOCK_K]")
        if self._program.gathered > 1:  # then `k_first` is no position
            corners = ""
        writer = TermWriter([self._logit], "k", corners=corners)
        logits = f"scores = {writer.write(self._logit)}"
        lines = writer.program_lines
        if lines:
            lines = ["", "# What the score terms ask of the row alone.", *lines]
        return (*writer.tile_lines, logits), tuple(lines)

    # -------------------------------------------------------------------------------- before loops

    def _state_address(self) -> Iterator[str]:
        if self._resumes:
            yield self._access.row_numbers_address("lse")
            yield self._access.packed_address("state", self._problem.value_head_dim)

    def _start(self) -> Iterator[str]:
        """What rows start from: the largest score and the sum of weights."""
        if self._resumes:
            yield "# Where the earlier passes ended: one key of weight 1, unless a row saw none."
            yield f"peak = {self._access.load_row_numbers('lse', _NOTHING)}"
            # A maximum may drop a NaN; the sum keeps it.
            yield 'total = tl.where(peak == float("-inf"), 0.0, 1.0 + 0.0 * peak)'
            yield f"peak = tl.maximum(peak, {PEAK_FLOOR})"
            return
        yield "# The largest score so far (base 2), the sum of weights, the weighted sum of values."
        if self._sink is None:
            yield f"peak = tl.full([BLOCK_Q], {PEAK_FLOOR}, tl.float32)"
            yield "total = tl.zeros([BLOCK_Q], tl.float32)"
            return
        writer = TermWriter([self._sink], "", position="row_positions", prefix="sink_")
        sink = writer.write(self._sink, "program")
        if "q" in coordinates_read(self._sink):
            yield "row_positions = q_offset + rows"
        yield from writer.program_lines
        yield "# The sink is the first key: its weight is 1, its value 0."
        yield f"sink = tl.zeros([BLOCK_Q], tl.float32) + {sink}"
        yield f"peak = tl.maximum(sink, {PEAK_FLOOR})"
        yield 'total = tl.where(sink == float("-inf"), 0.0, 1.0)'

    def _start_sums(self) -> Iterator[str]:
        for number, part in enumerate(self._access.value_parts):
            if self._resumes:
                yield self._access.load_packed("state", f"out_{number}", part)
            else:
                yield f"out_{number} = tl.zeros([BLOCK_Q, {part.width}], tl.float32)"

    # -------------------------------------------------------------------------------- in the loops

    def _tile(self, loop: TileLoop) -> Iterator[str]:
        masked, access = loop.kind == "partial", self._access
        yield from self._rows.tile_start(loop)
        yield from self._weights(masked)
        yield from access.tile_loads("value", masked)
        yield f"weights = weights.to(tl.{self._problem.dtype})"
        for number in range(len(access.value_parts)):
            operands = f"weights, value_{number}, out_{number} * decay[:, None]"
            yield f"out_{number} = tl.dot({operands}{self._precision})"

    def _weights(self, masked: bool) -> Iterator[str]:
        """The weights of a tile, and the decay of what earlier ones gave."""
        access = self._access
        yield from access.tile_loads("key", masked)
        yield from product_lines("scores", "query", "key", len(access.key_parts), self._precision)
        yield from self._rows.tile_keys(masked)
        if masked:
            yield from self._rows.allowed()
        yield from self._logits
        if masked:
            yield 'scores = tl.where(allowed, scores, float("-inf"))'
        # The largest score stays that where a scale, which is not negative, comes later.
        scale = "" if self._logits else " * scale"
        yield f"new_peak = tl.maximum(peak, tl.max(scores, 1){scale})"
        yield f"weights = tl.exp2(scores{scale} - new_peak[:, None])"
        yield "decay = tl.exp2(peak - new_peak)"
        yield "total = total * decay + tl.sum(weights, 1)"
        yield "peak = new_peak"

    # -------------------------------------------------------------------------------- after loops

    def _finish(self) -> None:
        access = self._access
        self._write(*self._norms())
        if not self._hands_on:
            self._write(*access.out_address())
        elif not self._resumes:
            self._write(access.packed_address("state", self._problem.value_head_dim))
        sums = [f"out_{number}" for number in range(len(access.value_parts))]
        for name in sums:
            self._write(f"{name} = tl.where(empty[:, None], 0.0, {name} * inverse[:, None])")
        if self._rows.notes:
            # A row whose weights are NaN has nothing but NaN to give, and sees why.
            self._write(*spoiled_lines(sums, "(total[:, None] > 0.0)", kept=self._resumes))
        for number, part in enumerate(access.value_parts):
            self._write(
                access.store_packed("state", f"out_{number}", part)
                if self._hands_on
                else access.store_out(number, part)
            )
        if not self._resumes:
            self._write(access.row_numbers_address("lse"))
        self._write(*self._lse(), access.store_row_numbers("lse"))

    def _norms(self) -> Iterator[str]:
        yield ""
        yield "# Rows without keys: 0, and the logarithm of the sum is -inf."
        yield "empty = total == 0.0"
        yield "inverse = 1.0 / tl.where(empty, 1.0, total)"

    def _lse(self) -> Iterator[str]:
        unit = "" if self._hands_on else " * 0.6931471805599453"
        yield "log_total = peak + tl.log2(tl.where(empty, 1.0, total))"
        yield f'lse = tl.where(empty, float("-inf"), log_total{unit})'

    def _write(self, *lines: str, depth: int = 0) -> None:
        self._lines += [INDENT * depth + line if line else "" for line in lines]


class _RepairWriter(_ForwardWriter):
    """Writes the kernel that computes once more, with care, what another one has spoiled."""

    def __init__(
        self,
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        resumes: bool,
        hands_on: bool,
    ) -> None:
        boxes = config.load == "descriptor"
        super().__init__(program, problem, repair_config(config), resumes, hands_on, boxes=boxes)

    def source(self) -> KernelSource:
        parameters = (*self._parameters(), *GRID_PARAMETERS)
        parts = parts_of(self._problem.value_head_dim)
        blocks, part = self._rows.blocks(), self._part(parts)
        self._write(*repair_lines(blocks, parts, part))
        title = "Attention forward: repair of what is not finite"
        return self._module("repair_forward", title, parameters, (REPAIR_HELPERS,))

    def _part(self, parts: int) -> Iterator[str]:
        """Some columns of a query tile."""
        access, width = self._access, self._problem.value_head_dim
        yield from self._rows.setup()
        yield from self._term_lines
        yield ""
        yield from access.row_tile_lines()
        yield from access.key_lines()
        yield from self._rows.counter()
        yield from columns_lines(width)
        yield from self._state_address()
        yield from self._start()
        if self._resumes:
            yield access.load_packed_columns("state", "sums", "value")
        else:
            yield f"sums = tl.zeros([BLOCK_Q, {columns_at_once(width)}], tl.float32)"
        # What earlier passes left has its logarithm overwritten: that needs all tiles.
        until = "" if self._resumes else unsettled_text(width, "row_exists")
        yield from all_tiles_loop(len(self._rows.loops), self._careful_tile(), until)
        yield from self._norms()
        yield "sums = tl.where(empty[:, None], 0.0, sums * inverse[:, None])"
        if self._resumes:
            yield "# What is stored has been read by all threads."
            yield "tl.debug_barrier()"
        if self._hands_on:
            if not self._resumes:
                yield access.packed_address("state", width)
            yield access.store_packed_columns("state", "sums", "value")
        else:
            yield from access.out_address()
            yield access.store_out_columns("sums")
        if self._resumes:
            yield from self._lse()
            yield f"row_exists = row_exists & (spoiled_part == {parts - 1})"
            yield access.store_row_numbers("lse")

    def _careful_tile(self) -> Iterator[str]:
        yield from self._rows.any_tile_start()
        yield from self._weights(masked=True)
        yield from self._access.load_columns("value", "numbers")
        yield "codes = tl.dot(weight_codes(weights, scores), number_codes(numbers))"
        yield f"weights = weights.to(tl.{self._problem.dtype})"
        operands = "weights, finite_numbers(numbers), sums * decay[:, None]"
        yield f"sums = tl.dot({operands}{self._precision})"
        yield "sums = with_codes(sums, codes)"
