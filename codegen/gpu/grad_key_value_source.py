"""The kernel of the gradients of keys and values: a program computes one key tile of one head of
the keys, from all query heads that share it.

With transposed tiles, so that what is accumulated lies along the keys:

    scores^T  = k q^T                   weights^T = 2^(scores^T scale - row_lse)
    grad_v   += weights^T grad_out      grad_scores^T = weights^T (v grad_out^T - delta)
    grad_k   += grad_scores^T q         times the scale, at the end

`lse` is the final one of the row, so passes of a pattern add up: all but the last leave float32
sums, all but the first start from them. Nothing is added up by two programs at once: repeated runs
give the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.chunk_source import CHUNK_HELPERS
from patterncc.codegen.gpu.isolation_source import (
    GRID_PARAMETERS,
    REPAIR_HELPERS,
    SPOILED,
    SPOILED_HELPERS,
    indented,
    repair_config,
    repair_lines,
    spoiled_lines,
)
from patterncc.codegen.gpu.kernel_source import KernelParameter, KernelSource
from patterncc.codegen.gpu.kernel_terms import (
    corners_of,
    finite_past_the_end,
    tile_logit,
    tile_slope,
)
from patterncc.codegen.gpu.kernel_text import INDENT, described_fields, header_text, module_text
from patterncc.codegen.gpu.key_access_source import RESULTS, KeyAccess
from patterncc.codegen.gpu.key_tile_source import KeyTile
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


def emit_grad_key_value(
    program: BlockProgram,
    problem: Problem,
    config: KernelConfig,
    *,
    resumes: bool = False,
    hands_on: bool = False,
) -> KernelSource:
    """Writes the kernel of the gradients of keys and values, for any lengths, offset, strides and
    numbers.

    Args:
        program: The pattern, or one pass of it, with its transposed sweeps.
        problem: The shape class.
        config: How to build it; `block_k` keys are held while `block_q` rows at a time pass by.
        resumes: It adds to what an earlier pass left.
        hands_on: It leaves float32 sums for a later pass, instead of the gradients.

    Raises:
        UnsupportedError: The dtype or head dimension has no kernel, or the pattern has a cover.
        ConfigError: The config's tiles are not the program's.
        InternalError: The program was lowered for the forward direction alone.
    """
    return _Writer(program, problem, config, resumes, hands_on).source()


def emit_grad_key_value_repair(
    program: BlockProgram,
    problem: Problem,
    config: KernelConfig,
    *,
    resumes: bool = False,
    hands_on: bool = False,
) -> KernelSource:
    """Writes the kernel that repairs what `emit_grad_key_value` with the same arguments has
    spoiled."""
    return _RepairWriter(program, problem, config, resumes, hands_on).source()


class _Writer:
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
        self._access = KeyAccess(problem, config, program.tiling, program.patches, boxes=boxes)
        self._logit = tile_logit(problem.terms, program.tiling)
        self._slope = tile_slope(problem.terms, program.tiling)
        written = [] if self._logit is None else [self._logit, self._slope]
        # Written once for all loops: lines before them, lines in a tile, and operands.
        corners = corners_of(program, "[BLOCK_K, BLOCK_Q]")
        self._writer = TermWriter(written, "q", corners=corners)
        self._texts = [self._writer.write(expr) for expr in written]
        self._finite = all(map(finite_past_the_end, written))
        lines = self._writer.program_lines
        self._keys = KeyTile(program, problem, config, self._access, written, lines)
        self._precision = dot_precision(problem)

    def source(self) -> KernelSource:
        lines = [
            *self._keys.blocks(),
            *self._keys.setup(),
            "",
            *self._access.held_lines(),
            "",
            *self._start(),
            *self._keys.body(self._tile),
            *self._finish(),
        ]
        helpers = (CHUNK_HELPERS, *((SPOILED_HELPERS,) if self._keys.notes else ()))
        title = "Gradients of keys and values"
        return self._module("grad_key_value", title, tuple(self._parameters()), lines, helpers)

    def _parameters(self) -> Iterator[KernelParameter]:
        pointers = [*self._access.results(self._resumes, self._hands_on)]
        if self._keys.notes:
            pointers.append(SPOILED)
        factors = [] if self._logit is not None else [KernelParameter("score_scale", "fp32")]
        factors += [] if self._hands_on else [KernelParameter("scale", "fp32")]
        return self._keys.parameters(pointers, factors)

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
        tables = self._keys.tables
        return KernelSource(name, text, parameters, self._problem, self._config, tables)

    def _start(self) -> Iterator[str]:
        yield from self._start_rows()
        for name in RESULTS:
            for number, part in enumerate(self._access.parts_of(name)):
                start = f"tl.zeros([BLOCK_K, {part.width}], tl.float32)"
                if self._resumes:
                    start = self._access.load_state(name, part, "key_starts")
                yield f"{name}_{number} = {start}"

    def _start_rows(self) -> Iterator[str]:
        if self._resumes:
            yield "# Where the earlier passes ended; chunks are added to that later."
            yield self._access.result_rows()
            yield "key_starts = key_exists & (split == 0) & (idle == 0)"
        else:
            yield "# The gradients, of the keys without the scale."

    def _tile(self, loop: TileLoop) -> Iterator[str]:
        access, precision, dtype = self._access, self._precision, self._problem.dtype
        yield from access.tile_loads("query")
        keys, values = (len(access.parts_of(name)) for name in ("key", "value"))
        yield from product_lines("scores", "key", "query", keys, precision)
        yield from access.tile_loads("grad_out")
        yield from product_lines("grad_weights", "value", "grad_out", values, precision)
        if self._logit is None:
            yield from self._grad_scores(loop)
        else:
            yield from self._through_terms(loop)
        for name, factor, rows in (
            ("grad_value", "weights", "grad_out"),
            ("grad_key", "grad_scores", "query"),
        ):
            yield f"{factor} = {factor}.to(tl.{dtype})"
            for number in range(len(access.parts_of(name))):
                operands = f"{factor}, {rows}_{number}, {name}_{number}"
                yield f"{name}_{number} = tl.dot({operands}{precision})"

    def _grad_scores(self, loop: TileLoop) -> Iterator[str]:
        """Weights, and the gradients of scores."""
        access = self._access
        yield access.load_row_numbers("row_lse")
        yield "scores = scores * score_scale - row_lse[None, :]"
        if loop.kind == "partial":
            # A choice of weights would be moved behind their rounding, by a compiler that then
            # takes a hundred instructions to shuffle truth values for it.
            yield from self._keys.tile_rows(loop.kind == "partial")
            yield from self._keys.allowed()
            yield 'scores = tl.where(allowed, scores, float("-inf"))'
        yield "weights = tl.exp2(scores)"
        yield access.load_row_numbers("row_delta")
        yield "grad_scores = weights * (grad_weights - row_delta[None, :])"
        if loop.kind == "partial":
            yield "grad_scores = tl.where(allowed, grad_scores, 0.0)"

    def _through_terms(self, loop: TileLoop) -> Iterator[str]:
        """The same by logits. What hidden pairs have, NaN as it may be, is left out, and so is what
        rows past the last one have."""
        logits, slope = self._texts
        yield self._access.load_row_numbers("row_lse")
        yield self._access.load_row_numbers("row_delta")
        yield from self._keys.tile_rows(loop.kind == "partial")
        yield from self._writer.tile_lines
        tests = []
        if not self._finite:
            tests.append('(row_lse[None, :] < float("inf"))')
        if loop.kind == "partial":
            yield from self._keys.allowed()
            tests.append("allowed")

        def counted(text: str, other: str) -> str:
            return f"tl.where({' & '.join(tests)}, {text}, {other})" if tests else text

        hidden = 'float("-inf")'
        yield f"scores = {counted(f'{logits} - row_lse[None, :]', hidden)}"
        yield f"grad_weights = {counted('grad_weights - row_delta[None, :]', '0.0')}"
        yield "weights = tl.exp2(scores)"
        if self._slope == ONE:
            yield "grad_scores = weights * grad_weights"
        else:
            yield f"grad_scores = weights * grad_weights * {counted(slope, '0.0')}"

    def _finish(self) -> Iterator[str]:
        access = self._access
        names = [
            f"{name}_{number}" for name in RESULTS for number in range(len(access.parts_of(name)))
        ]
        exists = "key_exists"
        if self._keys.notes:
            # Among which of the keys is not asked: that would take registers that the loops need.
            exists = "row_exists"
            yield f"{exists} = key_exists"
            yield from spoiled_lines(names, "", kept=self._resumes)
        yield ""
        yield "if split:"
        yield f"{INDENT}# A chunk: its sums are added up later."
        yield f"{INDENT}{access.sums_base('tl.program_id(0)')}"
        yield f"{INDENT}places_in_tile = tl.arange(0, BLOCK_K)"
        for name in RESULTS:
            for number in range(len(access.parts_of(name))):
                place = access.sums_place(name, number, "places_in_tile")
                yield f"{INDENT}tl.store({place}, {name}_{number})"
        yield "else:"
        yield f"{INDENT}key_ends = {exists} & (idle == 0)"
        yield from (
            f"{INDENT}{line}"
            for line in access.store_results("key_ends", self._hands_on, addressed=self._resumes)
        )


class _RepairWriter(_Writer):
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
        parts = sum(self._access.column_parts)
        lines = [*repair_lines(self._keys.blocks(), parts, self._part())]
        title = "Gradients of keys and values: repair"
        helpers = (CHUNK_HELPERS, REPAIR_HELPERS)
        return self._module("repair_grad_key_value", title, parameters, lines, helpers)

    def _part(self) -> Iterator[str]:
        """Some columns of one of the gradients of a key tile, or of a chunk's sums."""
        access = self._access
        yield from self._keys.setup()
        yield ""
        yield from access.held_lines()
        yield ""
        yield from access.column_lines()
        yield from self._start_rows()
        if self._resumes:
            yield from access.load_state_columns("gradient", "key_starts")
        else:
            yield f"gradient = tl.zeros([BLOCK_K, {access.columns_at_once}], tl.float32)"
        unsettled = 'any_number(tl.where(column_exists, gradient, float("nan")), key_exists)'
        yield from self._keys.careful_body(self._careful_tile, unsettled)
        if self._resumes:
            yield "# What is stored has been read by all threads."
            yield "tl.debug_barrier()"
        yield "if split:"
        lines = [
            access.sums_base("tl.program_id(0)"),
            "places_in_tile = tl.arange(0, BLOCK_K)",
            *access.store_sums_columns("gradient"),
        ]
        yield from indented(lines)
        yield "else:"
        lines = ["key_ends = key_exists & (idle == 0)"]
        if not self._resumes:
            lines.append(access.result_rows())
        lines += access.store_columns("gradient", "key_ends", self._hands_on)
        yield from indented(lines)

    def _careful_tile(self) -> Iterator[str]:
        access, precision, dtype = self._access, self._precision, self._problem.dtype
        yield from access.tile_loads("query")
        keys, values = (len(access.parts_of(name)) for name in ("key", "value"))
        yield from product_lines("scores", "key", "query", keys, precision)
        yield from access.tile_loads("grad_out")
        yield from product_lines("grad_weights", "value", "grad_out", values, precision)
        yield access.load_row_numbers("row_lse")
        yield access.load_row_numbers("row_delta")
        seen = "row_exists[None, :]"
        yield from self._keys.tile_rows(self._keys.masked)
        if self._keys.masked:
            yield from self._keys.allowed()
            seen += " & allowed"
        yield from self._writer.tile_lines
        logits, slope = self._texts or ("scores * score_scale", "")
        yield f"scores = {logits} - row_lse[None, :]"
        yield f'scores = tl.where({seen}, scores, float("-inf"))'
        yield "weights = tl.exp2(scores)"
        yield "grad_scores = weights * (grad_weights - row_delta[None, :])"
        if slope and self._slope != ONE:
            yield f"grad_scores = grad_scores * {slope}"
        yield 'grad_scores = tl.where(scores == float("-inf"), 0.0, grad_scores)'
        yield from access.load_columns("numbers")
        codes = "tl.where(of_value, weight_codes(weights, scores), factor_codes(scores))"
        yield f"codes = tl.dot({codes}, number_codes(numbers))"
        yield f"factors = tl.where(of_value, weights, grad_scores).to(tl.{dtype})"
        yield f"gradient = tl.dot(factors, finite_numbers(numbers), gradient{precision})"
        yield "gradient = with_codes(gradient, codes)"
