"""The forward kernel: a program computes one query tile of one head by an online softmax.

Two loops: first all partial tiles, with the mask, then all full tiles, without any mask code.
Scores live in the base-2 logarithm's domain. `peak` starts at a finite floor and masked scores are
minus infinity, so a row whose tiles so far held no key for it has weights of exactly 0: no guard is
needed in the loop, and `total` stays 0 for rows without keys. The order of statements in a tile
matters: it lets the product with the values run on while the next scores are computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.head_dim import query_key_value_parts
from patterncc.codegen.mask_source import emit_mask, scalar_name
from patterncc.codegen.scalar_source import HELPERS
from patterncc.codegen.sweep_source import emit_loops, scalars_read, wide_name
from patterncc.codegen.triton_source import KernelParameter, KernelSource
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import Param, Var, walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from patterncc.codegen.config import KernelConfig
    from patterncc.codegen.head_dim import Part
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem
    from patterncc.codegen.sweep_source import TileLoop

EMITTER = 1
"""Version of the generated text; it is part of the text, so a change of it separates caches."""

PEAK_FLOOR = -1.0e38
"""Where `peak` starts: below any score that occurs; finite, so that `-inf - peak` is never NaN."""

_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
_COMPUTED = ("q", "k", "head", "kv_head", "batch", "heads", "kv_heads", "q_first", "q_last")
_INDENT = "    "


def emit_forward(program: BlockProgram, problem: Problem, config: KernelConfig) -> KernelSource:
    """Writes the forward kernel of a lowered pattern, for any lengths, offset, strides and numbers.

    Raises:
        UnsupportedError: The dtype or head dimension has no kernel, or the pattern reads a table.
        ConfigError: The config's tiles are not the program's.
    """
    return _ForwardWriter(program, problem, config).source()


class _ForwardWriter:
    """Writes one kernel; each method writes one stretch of it, in the order of the text."""

    def __init__(self, program: BlockProgram, problem: Problem, config: KernelConfig) -> None:
        if problem.dtype not in _TYPES:
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
        self._described = config.load == "descriptor"
        self._element = f"tl.{problem.dtype}"
        # float32 is computed as such: tensor cores would round the operands to 10 bits.
        self._precision = ', input_precision="ieee"' if problem.dtype == "float32" else ""
        self._key_parts, self._value_parts = query_key_value_parts(problem)
        self._mask = emit_mask(program.mask)
        self._nest = emit_loops(program.forward)
        self._masked = any(loop.kind == "partial" for loop in self._nest.loops)
        self._bounds = scalars_read(program.forward)
        self._lines: list[str] = []

    def source(self) -> KernelSource:
        parameters = tuple(self._parameters())
        self._setup()
        self._operands()
        for loop in self._nest.loops:
            what = "Partial tiles, with the mask." if loop.kind == "partial" else "Full tiles."
            self._write("", f"# {what}", f"for step in range(0, {loop.count}):")
            self._write(*self._tile(loop), depth=1)
        self._finish()
        body = "\n".join(f"{_INDENT}{line}" if line else "" for line in self._lines)
        signature = "".join(f"{_INDENT}{parameter.name},\n" for parameter in parameters)
        helpers = f"{HELPERS}\n\n" if "floor_divide(" in body or "floor_modulo(" in body else ""
        text = (
            f"{self._header()}\nimport triton\nimport triton.language as tl\n\n\n{helpers}"
            f"@triton.jit\ndef forward(\n{signature}):\n{body}\n"
        )
        return KernelSource("forward", text, parameters, self._problem, self._config)

    # -------------------------------------------------------------------------------- signature

    def _header(self) -> str:
        p, c = self._problem, self._config
        fields = {
            "pattern": self._program.structure,
            "problem": f"{p.dtype}, head_dim {p.head_dim}, value_head_dim {p.value_head_dim}, "
            f"group {p.group}",
            "config": f"tile {c.block_q}x{c.block_k}, {c.num_warps} warps, {c.num_stages} stages, "
            f"{c.load} loads, {c.order} order",
            "emitter": str(EMITTER),
        }
        lines = ["# Attention forward, generated by patterncc: changes here are overwritten."]
        for name, value in fields.items():
            first, *more = value.splitlines() or [""]
            lines.append(f"# {name}: {first}")
            lines += [f"#   {line}" for line in more]
        return "\n".join(lines)

    def _parameters(self) -> Iterator[KernelParameter]:
        element = _TYPES[self._problem.dtype]
        if self._described:
            for name, rows, cut in (
                ("query", self._config.block_q, self._key_parts),
                ("key", self._config.block_k, self._key_parts),
                ("value", self._config.block_k, self._value_parts),
            ):
                for number, part in enumerate(cut):
                    box = (1, 1, rows, part.width)
                    kind = f"tensordesc<{element}[{', '.join(map(str, box))}]>"
                    yield KernelParameter(f"{name}_desc_{number}", kind, box=box)
        strided = ("out",) if self._described else ("query", "key", "value", "out")
        for name in strided:
            yield KernelParameter(f"{name}_ptr", f"*{element}", 16)
        yield KernelParameter("lse_ptr", "*fp32", 4)
        yield KernelParameter("scale", "fp32")
        for name in ("q_len", "kv_len", "q_offset"):
            yield KernelParameter(name, "i32")
        line = 4 if self._problem.dtype == "float32" else 8  # elements in 16 bytes
        for name in strided:
            for axis in ("batch", "head", "row"):
                yield KernelParameter(f"{name}_stride_{axis}", "i64", line)
        given = {"q_len", "kv_len", "q_offset", *_COMPUTED}
        for name in sorted({scalar_name(leaf) for leaf in self._scalars()} - given):
            yield KernelParameter(name, "i32")

    def _scalars(self) -> Iterator[Var | Param]:
        """The leaves that bounds and mask read."""
        yield from self._bounds
        if self._masked:
            yield from (leaf for leaf in walk(self._program.mask) if isinstance(leaf, (Var, Param)))

    # -------------------------------------------------------------------------------- before loops

    def _setup(self) -> None:
        config, group = self._config, self._problem.group
        forward = config.order == "forward"
        self._write(
            f"BLOCK_Q: tl.constexpr = {config.block_q}",
            f"BLOCK_K: tl.constexpr = {config.block_k}",
            "",
            "# One program: a query tile of a head of a batch entry"
            + ("." if forward else ", the last tiles first."),
            f"q_tile = {'' if forward else 'tl.num_programs(0) - 1 - '}tl.program_id(0)",
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
            "row_first = q_tile * BLOCK_Q",
            "rows = row_first + tl.arange(0, BLOCK_Q)",
            "row_exists = rows < q_len",
            "",
            "# Bounds of the sweeps, in 64 bits so that no sum of numbers wraps.",
            *(f"{wide_name(leaf)} = {_widened(leaf)}" for leaf in self._bounds),
            *self._nest.common,
            *(line for loop in self._nest.loops for line in loop.setup),
        )
        if self._masked:
            self._write("", "# What the mask asks of the row alone.")
            self._write("q = q_offset + rows[:, None]", *self._mask.row_lines)

    def _operands(self) -> None:
        self._write("")
        if self._described:
            for number, part in enumerate(self._key_parts):
                place = f"[batch, head, row_first, {part.start}]"
                shape = f"(BLOCK_Q, {part.width})"
                self._write(f"query_{number} = query_desc_{number}.load({place}).reshape{shape}")
        else:
            self._write(_base("query", "head"), _row_offsets("query"))
            for number, part in enumerate(self._key_parts):
                place = f"query_base + query_rows + {_columns(part)}"
                mask = _mask("row_exists[:, None]", part)
                self._write(f"query_{number} = tl.load({place}, mask={mask}, other=0.0)")
            self._write("key_rows = tl.arange(0, BLOCK_K)[:, None]")
            for name, cut in (("key", self._key_parts), ("value", self._value_parts)):
                self._write(_base(name, "kv_head"))
                for number, part in enumerate(cut):
                    offsets = f"key_rows.to(tl.int64) * {name}_stride_row + {_columns(part)}"
                    self._write(f"{name}_offsets_{number} = {offsets}")
        self._write(
            "",
            "# The largest score so far (base 2), the sum of weights, the weighted sum of values.",
            f"peak = tl.full([BLOCK_Q], {PEAK_FLOOR}, tl.float32)",
            "total = tl.zeros([BLOCK_Q], tl.float32)",
        )
        for number, part in enumerate(self._value_parts):
            self._write(f"out_{number} = tl.zeros([BLOCK_Q, {part.width}], tl.float32)")

    # -------------------------------------------------------------------------------- in the loops

    def _tile(self, loop: TileLoop) -> Iterator[str]:
        masked = loop.kind == "partial"
        yield f"k_first = ({loop.tile}) * BLOCK_K"
        if masked and not self._described:
            yield "key_exists = k_first + key_rows < kv_len"
        yield from self._tile_loads("key", self._key_parts, masked)
        for number in range(len(self._key_parts)):
            onto = ", scores" if number else ""
            operands = f"query_{number}, key_{number}.T{onto}"
            yield f"scores = tl.dot({operands}{self._precision})"
        if masked:
            yield "k = k_first + tl.arange(0, BLOCK_K)[None, :]"
            yield from self._mask.key_lines
            yield f"allowed = {self._mask.expression}"
            yield 'scores = tl.where(allowed, scores, float("-inf"))'
        yield "new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)"
        yield "weights = tl.exp2(scores * scale - new_peak[:, None])"
        yield "decay = tl.exp2(peak - new_peak)"
        yield "total = total * decay + tl.sum(weights, 1)"
        yield "peak = new_peak"
        yield from self._tile_loads("value", self._value_parts, masked)
        yield f"weights = weights.to({self._element})"
        for number in range(len(self._value_parts)):
            operands = f"weights, value_{number}, out_{number} * decay[:, None]"
            yield f"out_{number} = tl.dot({operands}{self._precision})"

    def _tile_loads(self, name: str, cut: Iterable[Part], masked: bool) -> Iterator[str]:
        """Loads a tile of keys or values; past the last key it is 0, for 0 * NaN would be NaN."""
        if not self._described:
            yield f"{name}_first = {name}_base + k_first.to(tl.int64) * {name}_stride_row"
        for number, part in enumerate(cut):
            if self._described:
                place = f"[batch, kv_head, k_first, {part.start}]"
                load = f"{name}_desc_{number}.load({place}).reshape(BLOCK_K, {part.width})"
            else:
                mask = _mask("key_exists" if masked else "", part)
                guard = f", mask={mask}, other=0.0" if mask else ""
                load = f"tl.load({name}_first + {name}_offsets_{number}{guard})"
            yield f"{name}_{number} = {load}"

    # -------------------------------------------------------------------------------- after loops

    def _finish(self) -> None:
        self._write(
            "",
            "# Rows without keys: 0, and the logarithm of the sum is -inf.",
            "empty = total == 0.0",
            "inverse = 1.0 / tl.where(empty, 1.0, total)",
            _base("out", "head"),
            _row_offsets("out"),
        )
        for number, part in enumerate(self._value_parts):
            result = f"tl.where(empty[:, None], 0.0, out_{number} * inverse[:, None])"
            place = f"out_base + out_rows + {_columns(part)}"
            mask = _mask("row_exists[:, None]", part)
            self._write(
                f"out_{number} = {result}",
                f"tl.store({place}, out_{number}.to({self._element}), mask={mask})",
            )
        self._write(
            "lse_base = lse_ptr + (batch.to(tl.int64) * tl.num_programs(1) + head) * q_len",
            "log_total = peak + tl.log2(tl.where(empty, 1.0, total))",
            'lse = tl.where(empty, float("-inf"), log_total * 0.6931471805599453)',
            "tl.store(lse_base + rows, lse, mask=row_exists)",
        )

    def _write(self, *lines: str, depth: int = 0) -> None:
        self._lines += [_INDENT * depth + line if line else "" for line in lines]


def _widened(leaf: Var | Param) -> str:
    """The 64-bit value of a scalar that bounds read."""
    match leaf:
        case Var("q_first"):
            return "q_offset.to(tl.int64) + row_first"
        case Var("q_last"):
            return "q_offset.to(tl.int64) + tl.minimum(row_first + BLOCK_Q, q_len) - 1"
    return f"{scalar_name(leaf)}.to(tl.int64)"


def _base(name: str, head: str) -> str:
    """Where a head starts; in 64 bits, for a tensor may hold more than 2**31 elements."""
    batch_offset = f"batch.to(tl.int64) * {name}_stride_batch"
    head_offset = f"{head}.to(tl.int64) * {name}_stride_head"
    return f"{name}_base = {name}_ptr + {batch_offset} + {head_offset}"


def _row_offsets(name: str) -> str:
    return f"{name}_rows = rows[:, None].to(tl.int64) * {name}_stride_row"


def _columns(part: Part) -> str:
    """The columns of a part, `[1, width]`."""
    columns = f"tl.arange(0, {part.width})[None, :]"
    return f"({part.start} + {columns})" if part.start else columns


def _mask(rows: str, part: Part) -> str:
    """What to load or store: the rows' mask and, where the part is padded, the columns'."""
    tests = [rows] if rows else []
    if part.padded:
        tests.append(f"(tl.arange(0, {part.width})[None, :] < {part.size})")
    return " & ".join(tests)
