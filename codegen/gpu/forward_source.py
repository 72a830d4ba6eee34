"""The forward kernel: a program computes one query tile of one head by an online softmax.

Two loops: first all partial tiles, with the mask, then all full tiles, without any mask code.
Scores live in the base-2 logarithm's domain. `peak` starts at a finite floor and masked scores are
minus infinity, so a row whose tiles so far held no key for it has weights of exactly 0: no guard is
needed in the loop, and `total` stays 0 for rows without keys. The order of statements in a tile
matters: it lets the product with the values run on while the next scores are computed.

A pattern of several passes has a kernel for each. All but the last leave their output in float32
and the base-2 logarithm of the sum; all but the first start from there, as from one key of weight 1
whose score is that logarithm and whose value is that output. That merge is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.access_source import TYPES, Access
from patterncc.codegen.gpu.class_source import (
    CLASS_NAMES,
    class_lines,
    length_parameters,
    row_lines,
    tile_lines,
)
from patterncc.codegen.gpu.kernel_source import KernelParameter, KernelSource
from patterncc.codegen.gpu.list_source import (
    CAPACITY,
    LIST_PARAMETERS,
    listed_loops,
)
from patterncc.codegen.gpu.mask_source import emit_mask, scalar_name
from patterncc.codegen.gpu.scalar_source import HELPERS
from patterncc.codegen.gpu.sweep_source import (
    emit_loops,
    expressions,
    scalars_read,
    wide_name,
    widened,
)
from patterncc.codegen.gpu.table_source import helpers, tables_read
from patterncc.codegen.ir import DENSE
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import Param, Var, walk
from patterncc.dsl.printer import expression_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.sweep_source import TileLoop
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem
    from patterncc.dsl.mask import Expr

EMITTER = 1
"""Version of the generated text; it is part of the text, so a change of it separates caches."""

PEAK_FLOOR = -1.0e38
"""Where `peak` starts: below any score that occurs; finite, so that `-inf - peak` is never NaN."""

_TILE_NAMES = frozenset({"q", "k", "q_first", "q_last", "residue"})
_CALL_NAMES = frozenset({"head", "kv_head", "batch", "heads", "kv_heads"})
_LENGTHS = frozenset({"q_len", "kv_len", "q_offset"})
_INDENT = "    "


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
        if problem.dtype not in TYPES:
            raise UnsupportedError(
                f"no GPU kernel computes in {problem.dtype}",
                "use float16, bfloat16 or float32, or the CPU",
            )
        if (program.block_q, program.block_k) != (config.block_q, config.block_k):
            raise ConfigError(
                f"tiles of {config.block_q}x{config.block_k} for a program lowered for others",
                (f"{program.block_q}x{program.block_k}",),
            )
        self._program = program
        self._problem = problem
        self._config = config
        self._resumes = resumes
        self._hands_on = hands_on
        self._access = Access(problem, config, program.tiling)
        # float32 is computed as such: tensor cores would round the operands to 10 bits.
        self._precision = ', input_precision="ieee"' if problem.dtype == "float32" else ""
        self._listed = bool(program.listed)
        self._nest = (
            listed_loops(program, problem.group) if self._listed else emit_loops(program.forward)
        )
        self._mask = emit_mask(program.mask, self._nest.documents)
        self._masked = any(loop.kind == "partial" for loop in self._nest.loops)
        self._bounds = () if self._listed else scalars_read(program.forward)
        self._tables = tables_read(self._expressions())
        self._lines: list[str] = []

    def source(self) -> KernelSource:
        parameters = tuple(self._parameters())
        self._setup()
        self._operands()
        for loop in self._nest.loops:
            what = "Partial tiles, with the mask." if loop.kind == "partial" else "Full tiles."
            self._write("", f"# {what}", *([loop.first] if loop.first else []))
            self._write(f"for step in range(0, {self._count(loop)}):")
            self._write(*self._tile(loop), depth=1)
        self._finish()
        body = "\n".join(f"{_INDENT}{line}" if line else "" for line in self._lines)
        signature = "".join(f"{_INDENT}{parameter.name},\n" for parameter in parameters)
        divides = "floor_divide(" in body or "floor_modulo(" in body
        functions = [*([HELPERS] if divides else []), *helpers(body)]
        text = (
            f"{self._header()}\nimport triton\nimport triton.language as tl\n\n\n"
            f"{''.join(f'{function}{chr(10)}{chr(10)}' for function in functions)}"
            f"@triton.jit\ndef forward(\n{signature}):\n{body}\n"
        )
        return KernelSource("forward", text, parameters, self._problem, self._config, self._tables)

    # -------------------------------------------------------------------------------- signature

    def _header(self) -> str:
        p, c, tiling = self._problem, self._config, self._program.tiling
        fields = {
            "pattern": self._program.structure,
            "problem": f"{p.dtype}, head_dim {p.head_dim}, value_head_dim {p.value_head_dim}, "
            f"group {p.group}",
            "config": f"tile {c.block_q}x{c.block_k}, {c.num_warps} warps, {c.num_stages} stages, "
            f"{c.load} loads, {c.order} order",
            "emitter": str(EMITTER),
        }
        if tiling != DENSE:
            fields["tiling"] = (
                f"rows {tiling.q_step} * q{' + q_class' * (tiling.q_step > 1)}, "
                f"keys {tiling.k_step} * k + {expression_text(tiling.k_class)}"
            )
        if self._resumes or self._hands_on:
            fields["pass"] = ", ".join(
                ["starts from an earlier one"] * self._resumes
                + ["leaves its result for a later one"] * self._hands_on
            )
        lines = ["# Attention forward, generated by patterncc: changes here are overwritten."]
        for name, value in fields.items():
            first, *more = value.splitlines() or [""]
            lines.append(f"# {name}: {first}")
            lines += [f"#   {line}" for line in more]
        return "\n".join(lines)

    def _parameters(self) -> Iterator[KernelParameter]:
        yield from self._access.descriptors()
        yield from self._access.pointers()
        yield KernelParameter("lse_ptr", "*fp32", 4)
        if self._resumes or self._hands_on:
            yield KernelParameter("state_ptr", "*fp32", 16)
        if self._listed:
            yield from LIST_PARAMETERS
        for table in self._tables:
            yield table.pointer
        yield KernelParameter("scale", "fp32")
        for name in length_parameters(self._program.tiling):
            yield KernelParameter(name, "i32")
        yield from self._access.strides()
        if self._listed:
            yield CAPACITY
        for table in self._tables:
            yield from table.sizes
        known = {*_TILE_NAMES, *_CALL_NAMES, *_LENGTHS, *CLASS_NAMES}
        known |= {*length_parameters(self._program.tiling)}
        for name in sorted({scalar_name(leaf) for leaf in self._scalars()} - known):
            yield KernelParameter(name, "i32")

    def _expressions(self) -> Iterator[Expr]:
        """What the kernel computes of the program."""
        if not self._listed:
            yield from expressions(self._program.forward)
        yield self._program.tiling.k_class
        if self._masked:
            yield self._program.mask

    def _scalars(self) -> Iterator[Var | Param]:
        """The leaves of those."""
        for expr in self._expressions():
            yield from (leaf for leaf in walk(expr) if isinstance(leaf, (Var, Param)))

    # -------------------------------------------------------------------------------- before loops

    def _setup(self) -> None:
        config, group, tiling = self._config, self._problem.group, self._program.tiling
        self._write(
            f"BLOCK_Q: tl.constexpr = {config.block_q}",
            f"BLOCK_K: tl.constexpr = {config.block_k}",
            "",
            *tile_lines(tiling, config.order),
            "head = tl.program_id(1)",
            "batch = tl.program_id(2)",
            "kv_head = head" if group == 1 else f"kv_head = head // {group}",
        )
        names = {scalar_name(leaf) for leaf in self._scalars()}
        if "heads" in names:
            self._write("heads = tl.num_programs(1)")
        if "kv_heads" in names:
            self._write(f"kv_heads = tl.num_programs(1) // {group}")
        self._write(
            *class_lines(tiling),
            *row_lines(tiling),
            "",
            "# Where the lists of the tile's key tiles are."
            if self._listed
            else "# Bounds of the sweeps, in 64 bits so that no sum of numbers wraps.",
            *(f"{wide_name(leaf)} = {widened(leaf)}" for leaf in self._bounds),
            *self._nest.common,
            *(line for loop in self._nest.loops for line in loop.setup),
        )
        if self._masked:
            self._write("", "# What the mask asks of the row alone.")
            self._write("q = q_offset + rows[:, None]", *self._mask.row_lines)

    def _operands(self) -> None:
        self._write("", *self._access.query_lines(), *self._access.key_lines(), "")
        if self._resumes:
            self._write(
                "# Where the earlier passes ended: one key of weight 1, unless a row saw none.",
                self._access.lse_address(),
                self._access.state_address(),
                f"peak = {self._access.load_lse()}",
                'total = tl.where(peak == float("-inf"), 0.0, 1.0)',
                f"peak = tl.maximum(peak, {PEAK_FLOOR})",
            )
            for number, part in enumerate(self._access.value_parts):
                self._write(self._access.load_state(number, part))
            return
        self._write(
            "# The largest score so far (base 2), the sum of weights, the weighted sum of values.",
            f"peak = tl.full([BLOCK_Q], {PEAK_FLOOR}, tl.float32)",
            "total = tl.zeros([BLOCK_Q], tl.float32)",
        )
        for number, part in enumerate(self._access.value_parts):
            self._write(f"out_{number} = tl.zeros([BLOCK_Q, {part.width}], tl.float32)")

    # -------------------------------------------------------------------------------- in the loops

    def _count(self, loop: TileLoop) -> str:
        if self._program.tiling == DENSE or self._listed:
            return loop.count
        return f"tl.where(has_work, {loop.count}, 0)"

    def _tile(self, loop: TileLoop) -> Iterator[str]:
        masked, access = loop.kind == "partial", self._access
        yield f"k_first = ({loop.tile}) * BLOCK_K"
        if loop.following:
            yield loop.following
        yield from access.tile_start(masked)
        yield from access.tile_loads("key", access.key_parts, masked)
        for number in range(len(access.key_parts)):
            onto = ", scores" if number else ""
            operands = f"query_{number}, key_{number}.T{onto}"
            yield f"scores = tl.dot({operands}{self._precision})"
        if masked:
            yield access.tile_keys()
            yield from self._mask.key_lines
            again = " & (k_first <= k)" if access.moves_boxes else ""
            yield f"allowed = {self._mask.expression}{again}"
            yield 'scores = tl.where(allowed, scores, float("-inf"))'
        yield "new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)"
        yield "weights = tl.exp2(scores * scale - new_peak[:, None])"
        yield "decay = tl.exp2(peak - new_peak)"
        yield "total = total * decay + tl.sum(weights, 1)"
        yield "peak = new_peak"
        yield from access.tile_loads("value", access.value_parts, masked)
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
            self._write(access.state_address())
        for number, part in enumerate(access.value_parts):
            result = f"tl.where(empty[:, None], 0.0, out_{number} * inverse[:, None])"
            store = access.store_state if self._hands_on else access.store_out
            self._write(f"out_{number} = {result}", store(number, part))
        if not self._resumes:
            self._write(access.lse_address())
        unit = "" if self._hands_on else " * 0.6931471805599453"
        self._write(
            "log_total = peak + tl.log2(tl.where(empty, 1.0, total))",
            f'lse = tl.where(empty, float("-inf"), log_total{unit})',
            access.store_lse(),
        )

    def _write(self, *lines: str, depth: int = 0) -> None:
        self._lines += [_INDENT * depth + line if line else "" for line in lines]
