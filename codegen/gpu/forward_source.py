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


class _ForwardWriter:
    """Writes one kernel; each method writes one stretch of it, in the order of the text."""

    def __init__(
        self,
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        resumes: bool,
        hands_on: bool,
    ) -> None:
        check_program(program, problem, config)
        self._program = program
        self._problem = problem
        self._config = config
        self._resumes = resumes
        self._hands_on = hands_on
        self._access = Access(problem, config, program.tiling, gathered=program.gathered > 1)
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
        self._write(*self._rows.setup(), *self._term_lines)
        self._operands()
        for loop in self._rows.loops:
            self._write(*self._rows.loop_head(loop))
            self._write(*self._tile(loop), depth=1)
        self._finish()
        fields = described_fields(
            self._program,
            self._problem,
            self._config,
            EMITTER,
            resumes=self._resumes,
            hands_on=self._hands_on,
        )
        header = header_text("Attention forward", fields)
        text = module_text(header, "forward", parameters, self._lines)
        tables = self._rows.tables
        return KernelSource("forward", text, parameters, self._problem, self._config, tables)

    def _parameters(self) -> Iterator[KernelParameter]:
        pointers = [KernelParameter("lse_ptr", "*fp32", 4)]
        if self._resumes or self._hands_on:
            pointers.append(KernelParameter("state_ptr", "*fp32", 16))
        scale = [KernelParameter("scale", "fp32")] if self._logit is None else []
        return self._rows.parameters(pointers, scale)

    def _written_terms(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What turns a tile's scores into logits, and what that needs before the loops."""
        if self._logit is None:
            return (), ()
        corners = corners_of(self._program.tiling, "[BLOCK_Q, BLOCK_K]")
        if self._program.gathered > 1:  # then `k_first` is no position
            corners = ""
        writer = TermWriter([self._logit], "k", corners=corners)
        logits = f"scores = {writer.write(self._logit)}"
        lines = writer.program_lines
        if lines:
            lines = ["", "# What the score terms ask of the row alone.", *lines]
        return (*writer.tile_lines, logits), tuple(lines)

    # -------------------------------------------------------------------------------- before loops

    def _operands(self) -> None:
        self._write("", *self._access.row_tile_lines(), *self._access.key_lines(), "")
        if self._resumes:
            self._write(
                "# Where the earlier passes ended: one key of weight 1, unless a row saw none.",
                self._access.row_numbers_address("lse"),
                self._access.packed_address("state", self._problem.value_head_dim),
                f"peak = {self._access.load_row_numbers('lse', _NOTHING)}",
                'total = tl.where(peak == float("-inf"), 0.0, 1.0)',
                f"peak = tl.maximum(peak, {PEAK_FLOOR})",
            )
            for number, part in enumerate(self._access.value_parts):
                self._write(self._access.load_packed("state", f"out_{number}", part))
            return
        self._write(
            "# The largest score so far (base 2), the sum of weights, the weighted sum of values."
        )
        if self._sink is None:
            self._write(
                f"peak = tl.full([BLOCK_Q], {PEAK_FLOOR}, tl.float32)",
                "total = tl.zeros([BLOCK_Q], tl.float32)",
            )
        else:
            writer = TermWriter([self._sink], "", position="row_positions", prefix="sink_")
            sink = writer.write(self._sink, "program")
            if "q" in coordinates_read(self._sink):
                self._write("row_positions = q_offset + rows")
            self._write(
                *writer.program_lines,
                "# The sink is the first key: its weight is 1, its value 0.",
                f"sink = tl.zeros([BLOCK_Q], tl.float32) + {sink}",
                f"peak = tl.maximum(sink, {PEAK_FLOOR})",
                'total = tl.where(sink == float("-inf"), 0.0, 1.0)',
            )
        for number, part in enumerate(self._access.value_parts):
            self._write(f"out_{number} = tl.zeros([BLOCK_Q, {part.width}], tl.float32)")

    # -------------------------------------------------------------------------------- in the loops

    def _tile(self, loop: TileLoop) -> Iterator[str]:
        masked, access = loop.kind == "partial", self._access
        yield from self._rows.tile_start(loop)
        yield from access.tile_loads("key", masked)
        yield from product_lines("scores", "query", "key", len(access.key_parts), self._precision)
        yield from self._rows.tile_keys(loop)
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
        yield from access.tile_loads("value", masked)
        yield f"weights = weights.to(tl.{self._problem.dtype})"
        for number in range(len(access.value_parts)):
            operands = f"weights, value_{number}, out_{number} * decay[:, None]"
            yield f"out_{number} = tl.dot({operands}{self._precision})"

    # -------------------------------------------------------------------------------- after loops

    def _finish(self) -> None:
        access = self._access
        self._write(
            "",
            "# Rows without keys: 0, and the logarithm of the sum is -inf.",
            "empty = total == 0.0",
            "inverse = 1.0 / tl.where(empty, 1.0, total)",
        )
        if not self._hands_on:
            self._write(*access.out_address())
        elif not self._resumes:
            self._write(access.packed_address("state", self._problem.value_head_dim))
        for number, part in enumerate(access.value_parts):
            result = f"tl.where(empty[:, None], 0.0, out_{number} * inverse[:, None])"
            store = (
                access.store_packed("state", f"out_{number}", part)
                if self._hands_on
                else access.store_out(number, part)
            )
            self._write(f"out_{number} = {result}", store)
        if not self._resumes:
            self._write(access.row_numbers_address("lse"))
        unit = "" if self._hands_on else " * 0.6931471805599453"
        self._write(
            "log_total = peak + tl.log2(tl.where(empty, 1.0, total))",
            f'lse = tl.where(empty, float("-inf"), log_total{unit})',
            access.store_row_numbers("lse"),
        )

    def _write(self, *lines: str, depth: int = 0) -> None:
        self._lines += [INDENT * depth + line if line else "" for line in lines]
