"""The kernel of the query's gradient: a program computes one query tile of one head.

The loops are the forward kernel's. Weights come from the final lse of all passes, so nothing is
carried from tile to tile but a sum, and the gradients of passes add up:

    weights     = exp(scale * query . key - lse)         0 for pairs that are not allowed
    grad_scores = weights * (grad_out . value - delta)
    grad_query  = scale * grad_scores . key

(Dao, FlashAttention-2, 2023, algorithm 2.) A pair that is hidden is set to 0 in `grad_scores`, by a
choice and not by a product: whatever its score or its value is, infinite or NaN, nothing of it
reaches the sum. Rows without keys have lse -inf; it is read as +inf, which makes their weights 0.

A pattern of several passes has a kernel for each. All but the last leave their sum in float32,
without the scale; all but the first start from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.access_source import TYPES, Access
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
from patterncc.codegen.gpu.kernel_terms import (
    corners_of,
    row_entries,
    tile_logit,
    tile_slope,
)
from patterncc.codegen.gpu.kernel_text import INDENT, described_fields, header_text, module_text
from patterncc.codegen.gpu.query_tile_source import QueryTile
from patterncc.codegen.gpu.score_source import TermWriter
from patterncc.codegen.gpu.tile_source import check_program, dot_precision, product_lines
from patterncc.dsl.score.nodes import ONE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.sweep_source import TileLoop
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem

EMITTER = 1
"""Version of the generated text; it is part of the text, so a change of it separates caches."""

ROW_TENSORS = ("query", "grad_out")
"""The tensors of which a query tile is loaded."""

STATE = "grad_query_state"
"""The float32 sums between passes, `[batch, heads, q_len, head_dim]` without gaps."""


def emit_grad_query(
    program: BlockProgram,
    problem: Problem,
    config: KernelConfig,
    *,
    resumes: bool = False,
    hands_on: bool = False,
) -> KernelSource:
    """Writes the kernel of the query's gradient, for any lengths, offset, strides and numbers.

    With `emit_grad_query_entries` the kernel also leaves, for each of `row_entries`, the sum of its
    gradient over the pairs of each row, float32 `[batch, heads, q_len]`.

    Args:
        program: The pattern, or one pass of it; its forward sweeps are read.
        problem: The shape class.
        config: How to build it.
        resumes: It starts from the sums of an earlier pass.
        hands_on: It leaves its sums for a later pass, instead of the gradient.

    Raises:
        UnsupportedError: The dtype or head dimension has no kernel, or the pattern has a cover.
        ConfigError: The config's tiles are not the program's.
    """
    return _GradQueryWriter(program, problem, config, resumes, hands_on).source()


def emit_grad_query_entries(
    program: BlockProgram,
    problem: Problem,
    config: KernelConfig,
    *,
    resumes: bool = False,
    hands_on: bool = False,
) -> KernelSource:
    """As `emit_grad_query`, with sums of the gradients of tables that score terms read."""
    return _GradQueryWriter(program, problem, config, resumes, hands_on, entries=True).source()


def emit_grad_query_repair(
    program: BlockProgram,
    problem: Problem,
    config: KernelConfig,
    *,
    resumes: bool = False,
    hands_on: bool = False,
) -> KernelSource:
    """Writes the kernel that repairs what `emit_grad_query`, or `emit_grad_query_entries`, with the
    same arguments has spoiled; sums for tables are never spoiled."""
    return _RepairWriter(program, problem, config, resumes, hands_on).source()


class _GradQueryWriter:
    """Writes one kernel; each method writes one stretch of it, in the order of the text."""

    def __init__(
        self,
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        resumes: bool,
        hands_on: bool,
        *,
        entries: bool = False,
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
            ROW_TENSORS,
            (),
            gathered=gathered,
            patches=program.patches,
            boxes=boxes and not gathered,
        )
        terms, tiling = problem.terms, program.tiling
        self._logit = tile_logit(terms, tiling)
        self._slope = tile_slope(terms, tiling)
        self._entries = row_entries(terms, tiling) if entries else ()
        written = [] if self._logit is None else [self._logit, self._slope]
        written += [entry.slope for entry in self._entries]
        self._rows = QueryTile(program, problem, config, self._access, written)
        # Written once for all loops: lines before them, lines in a tile, and operands.
        # Of gathered keys `k_first` is no position.
        corners = "" if gathered else corners_of(program, "[BLOCK_Q, BLOCK_K]")
        self._writer = TermWriter(written, "k", corners=corners)
        self._texts = [self._writer.write(expr) for expr in written]
        self._precision = dot_precision(problem)

    def source(self) -> KernelSource:
        lines = [*self._rows.blocks(), *self._rows.setup(), *self._writer.program_lines]
        lines += [*self._operands(), *self._start()]
        for loop in self._rows.loops:
            lines += self._rows.loop_head(loop)
            lines += (f"{INDENT}{line}" for line in self._tile(loop))
        lines += self._finish()
        helpers = (SPOILED_HELPERS,) if self._rows.notes else ()
        parameters = tuple(self._parameters())
        title = "Attention backward: gradient of the query"
        return self._module("grad_query", title, parameters, lines, helpers)

    def _module(
        self,
        name: str,
        title: str,
        parameters: tuple[KernelParameter, ...],
        lines: list[str],
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
        text = module_text(header_text(title, fields), name, parameters, lines, helpers)
        tables = self._rows.tables
        return KernelSource(name, text, parameters, self._problem, self._config, tables)

    def _parameters(self) -> Iterator[KernelParameter]:
        pointers = [
            KernelParameter("lse_ptr", "*fp32", 4),
            KernelParameter("delta_ptr", "*fp32", 4),
        ]
        if not self._hands_on:
            element = TYPES[self._problem.dtype]
            pointers.append(KernelParameter("grad_query_ptr", f"*{element}", 16))
        if self._resumes or self._hands_on:
            pointers.append(KernelParameter(f"{STATE}_ptr", "*fp32", 16))
        pointers += [KernelParameter(f"{entry.name}_ptr", "*fp32", 4) for entry in self._entries]
        if self._rows.notes:
            pointers.append(SPOILED)
        factors = [] if self._logit is not None else [KernelParameter("score_scale", "fp32")]
        factors += [] if self._hands_on else [KernelParameter("scale", "fp32")]
        return self._rows.parameters(pointers, factors)

    def _operands(self) -> Iterator[str]:
        """What stays for the whole row of tiles."""
        access = self._access
        yield ""
        yield from access.row_tile_lines()
        yield from access.key_lines()
        yield ""
        yield "# Logarithms of base 2; where there are no keys, weights of 0."
        yield access.row_numbers_address("lse")
        lse = access.load_row_numbers("lse", 'float("-inf")')
        yield f"lse = {lse}"
        none = 'float("inf")'
        yield f'lse = tl.where(lse == float("-inf"), {none}, lse * 1.4426950408889634)[:, None]'
        yield access.row_numbers_address("delta")
        yield f"delta = {access.load_row_numbers('delta', '0.0')}[:, None]"
        if self._resumes:
            yield access.packed_address(STATE, self._problem.head_dim)

    def _start(self) -> Iterator[str]:
        """What the sums start from."""
        access = self._access
        for entry in self._entries:
            name = entry.name
            yield access.row_numbers_address(name)
            zeros = "tl.zeros([BLOCK_Q], tl.float32)"
            start = access.load_row_numbers(name, "0.0") if self._resumes else zeros
            yield f"{name} = {start}"
        for number, part in enumerate(access.key_parts):
            if self._resumes:
                yield access.load_packed(STATE, f"grad_query_{number}", part)
            else:
                yield f"grad_query_{number} = tl.zeros([BLOCK_Q, {part.width}], tl.float32)"

    def _tile(self, loop: TileLoop) -> Iterator[str]:
        masked, access = loop.kind == "partial", self._access
        yield from self._rows.tile_start(loop)
        yield from access.tile_loads("key", masked)
        keys, values = len(access.key_parts), len(access.value_parts)
        yield from product_lines("scores", "query", "key", keys, self._precision)
        yield from access.tile_loads("value", masked)
        yield from product_lines("grad_weights", "grad_out", "value", values, self._precision)
        if self._logit is None:
            yield "weights = tl.exp2(scores * score_scale - lse)"
            yield "grad_scores = weights * (grad_weights - delta)"
            yield from self._rows.tile_keys(masked)
            if masked:
                yield from self._rows.allowed()
                yield "grad_scores = tl.where(allowed, grad_scores, 0.0)"
        else:
            yield from self._rows.tile_keys(masked)
            if masked:
                yield from self._rows.allowed()
            yield from self._through_terms(masked)
        yield f"grad_scores = grad_scores.to(tl.{self._problem.dtype})"
        for number in range(len(access.key_parts)):
            operands = f"grad_scores, key_{number}, grad_query_{number}"
            yield f"grad_query_{number} = tl.dot({operands}{self._precision})"

    def _through_terms(self, masked: bool) -> Iterator[str]:
        """The gradients of logits, then those of scores and of entries of tables. What hidden
        pairs have, NaN as it may be, is left out of each."""

        def counted(text: str) -> str:
            return f"tl.where(allowed, {text}, 0.0)" if masked else text

        logits, slope, *entries = self._texts
        yield from self._writer.tile_lines
        yield f"weights = tl.exp2({logits} - lse)"
        yield "grad_logits = weights * (grad_weights - delta)"
        for entry, text in zip(self._entries, entries, strict=True):
            share = "grad_logits" if entry.slope == ONE else f"grad_logits * {text}"
            yield f"{entry.name} += tl.sum({counted(share)}, 1)"
        through = "grad_logits" if self._slope == ONE else f"grad_logits * {slope}"
        yield f"grad_scores = {counted(through)}"

    def _finish(self) -> Iterator[str]:
        access, name = self._access, STATE if self._hands_on else "grad_query"
        yield ""
        yield from (access.store_row_numbers(entry.name) for entry in self._entries)
        if self._rows.notes:
            # Rows that see a NaN have nothing else, unless they see no key.
            sound = '((lse == lse) & ((delta == delta) | (lse == float("inf"))))'
            sums = [f"grad_query_{number}" for number in range(len(access.key_parts))]
            yield from spoiled_lines(sums, sound, kept=self._resumes)
        if not (self._hands_on and self._resumes):
            yield access.packed_address(name, self._problem.head_dim)
        for number, part in enumerate(access.key_parts):
            value = f"grad_query_{number}"
            if not self._hands_on:
                value = f"({value} * scale).to(tl.{self._problem.dtype})"
            yield access.store_packed(name, value, part)


class _RepairWriter(_GradQueryWriter):
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
        parts = parts_of(self._problem.head_dim)
        lines = [*repair_lines(self._rows.blocks(), parts, self._part())]
        title = "Attention backward: repair of the query's gradient"
        return self._module("repair_grad_query", title, parameters, lines, (REPAIR_HELPERS,))

    def _part(self) -> Iterator[str]:
        """Some columns of a query tile."""
        access, width = self._access, self._problem.head_dim
        yield from self._rows.setup()
        yield from self._writer.program_lines
        yield from self._operands()
        yield from self._rows.counter()
        yield from columns_lines(width)
        if self._resumes:
            yield access.load_packed_columns(STATE, "sums", "query")
        else:
            yield f"sums = tl.zeros([BLOCK_Q, {columns_at_once(width)}], tl.float32)"
        unsettled = unsettled_text(width, "row_exists")
        yield from all_tiles_loop(len(self._rows.loops), self._careful_tile(), unsettled)
        name = STATE if self._hands_on else "grad_query"
        if not (self._hands_on and self._resumes):
            yield access.packed_address(name, width)
        if self._resumes:
            yield "# What is stored has been read by all threads."
            yield "tl.debug_barrier()"
        value = "sums" if self._hands_on else f"(sums * scale).to(tl.{self._problem.dtype})"
        yield access.store_packed_columns(name, value, "query")

    def _careful_tile(self) -> Iterator[str]:
        access, precision = self._access, self._precision
        yield from self._rows.any_tile_start()
        yield from access.tile_loads("key", masked=True)
        keys, values = len(access.key_parts), len(access.value_parts)
        yield from product_lines("scores", "query", "key", keys, precision)
        yield from access.tile_loads("value", masked=True)
        yield from product_lines("grad_weights", "grad_out", "value", values, precision)
        yield from self._rows.tile_keys(masked=True)
        yield from self._rows.allowed()
        logits, slope, *_ = [*self._texts, "", ""]
        yield from self._writer.tile_lines
        yield f"exponents = {logits or 'scores * score_scale'} - lse"
        yield 'exponents = tl.where(allowed, exponents, float("-inf"))'
        yield "grad_scores = tl.exp2(exponents) * (grad_weights - delta)"
        if logits and self._slope != ONE:
            yield f"grad_scores = grad_scores * {slope}"
        yield 'grad_scores = tl.where(exponents == float("-inf"), 0.0, grad_scores)'
        yield from access.load_columns("key", "numbers")
        yield "codes = tl.dot(factor_codes(exponents), number_codes(numbers))"
        yield f"grad_scores = grad_scores.to(tl.{self._problem.dtype})"
        yield f"sums = tl.dot(grad_scores, finite_numbers(numbers), sums{precision})"
        yield "sums = with_codes(sums, codes)"
