"""The kernel that sums gradients of tables which score terms read at positions of keys: by key,
`bias[k]`, or by distance, `bias[head, q - k + 128]`.

A program is for one head and one key tile, or one diagonal of square tiles, and goes through all
query tiles; so each number that it leaves is added up by one program in a fixed order. What entry
of a table a key or a distance chooses is up to the caller: memory is a few numbers for each key
and row, whatever the terms do to the index.

A tile on a diagonal has rows `r` and keys `c` of the distance `first + r - c`. Turned by its rows,
`turned[r, s] = tile[r, (r + s) % BLOCK]`, a column holds two distances: `first - s` where
`r + s < BLOCK`, and `first + BLOCK - s` below.

All pairs of tiles are looked at, and those that the mask hides wholly are left out: this kernel
knows no sweeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from patterncc.codegen.gpu.access_source import Access
from patterncc.codegen.gpu.edge_source import EDGES, by_distance, corner_texts
from patterncc.codegen.gpu.kernel_source import KernelParameter, KernelSource
from patterncc.codegen.gpu.kernel_terms import TermParameters, in_base_2, in_classes
from patterncc.codegen.gpu.kernel_text import INDENT, described_fields, header_text, module_text
from patterncc.codegen.gpu.mask_source import emit_mask, scalar_name
from patterncc.codegen.gpu.score_source import TermWriter
from patterncc.codegen.gpu.table_source import tables_read
from patterncc.codegen.gpu.tile_source import check_program, dot_precision, product_lines
from patterncc.codegen.ir import DENSE
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Param, Var, variables, walk
from patterncc.dsl.score.nodes import discrete
from patterncc.dsl.score.printer import real_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem
    from patterncc.dsl.mask import Expr, IntExpr
    from patterncc.dsl.score.nodes import Lookup, Real
    from patterncc.dsl.score.terms import ScoreTerms

EMITTER = 1
"""Version of the generated text; it is part of the text, so a change of it separates caches."""

Reach: TypeAlias = Literal["key", "distance"]

_ROWS = ("query", "grad_out")
_GIVEN = frozenset({"q", "k", "q_len", "kv_len", "q_offset", "head", "kv_head", "batch", "heads"})


@dataclass(frozen=True, slots=True)
class PositionEntry:
    """An entry of a table of which a kernel sums the gradient by key or by distance.

    Attributes:
        name: Of the sums, float32 `[batch, heads, tiles, parts, block]`; `parts` is 1 by key and 2
            by distance.
        lookup: The entry, as the terms have it.
        slope: The derivative of the logit by it.
    """

    name: str
    lookup: Lookup
    slope: Real


def reach_of(lookup: Lookup) -> Reach | None:
    """By what of a pair's positions an entry is chosen, if it is a key's position or the distance
    from it; None if it is both, or neither."""
    read = frozenset().union(*map(variables, lookup.indexes))
    if "k" not in read:
        return None
    if "q" not in read:
        return "key"
    return None if None in map(by_distance, lookup.indexes) else "distance"


def position_entries(terms: ScoreTerms, reach: Reach) -> tuple[PositionEntry, ...]:
    """The entries that a logit reads so, in the order of its text."""
    found = [(entry, slope) for entry, slope in terms.table_slopes() if reach_of(entry) == reach]
    return tuple(
        PositionEntry(f"grad_by_{reach}_{number}", entry, slope)
        for number, (entry, slope) in enumerate(found)
    )


def emit_grad_key_entries(
    program: BlockProgram, problem: Problem, config: KernelConfig, *, resumes: bool = False
) -> KernelSource:
    """Writes the kernel of sums by key; arguments and errors as `emit_grad_distance_entries`."""
    return _Writer(program, problem, config, "key", resumes).source()


def emit_grad_distance_entries(
    program: BlockProgram, problem: Problem, config: KernelConfig, *, resumes: bool = False
) -> KernelSource:
    """Writes the kernel of sums by distance.

    Args:
        program: The pattern, or one pass of it; only its mask is read.
        problem: The shape class, with the terms.
        config: How to build it: square tiles, loads by pointers.
        resumes: It adds to what an earlier pass left.

    Raises:
        UnsupportedError: The dtype or head dimension has no kernel, the pattern has a cover, or the
            pass is in classes of rows or keys.
        ConfigError: The config's tiles are not the program's.
    """
    return _Writer(program, problem, config, "distance", resumes).source()


class _Writer:
    """Writes one kernel; each method writes one stretch of it, in the order of the text."""

    def __init__(
        self,
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        reach: Reach,
        resumes: bool,
    ) -> None:
        check_program(program, problem, config)
        self._entries = position_entries(problem.terms, reach)
        if program.tiling != DENSE:
            raise UnsupportedError(
                f"the gradient of `{real_text(self._entries[0].lookup)}` has no GPU kernel for a "
                "pattern that is computed in classes of rows or keys, as dilated ones are",
                f"detach `{self._entries[0].lookup.table}`, or compute on the CPU",
            )
        self._program = program
        self._problem = problem
        self._config = config
        self._reach = reach
        self._resumes = resumes
        self._access = Access(problem, config, DENSE, _ROWS, ())
        self._mask = emit_mask(program.mask)
        self._logit = in_base_2(in_classes(problem.terms.logit, DENSE))
        self._slopes = [in_classes(entry.slope, DENSE) for entry in self._entries]
        self._terms = [self._logit, *self._slopes]
        self._writer = TermWriter(self._terms, "qk", corners="[BLOCK_Q, BLOCK_K]")
        self._texts = [self._writer.write(expr) for expr in self._terms]
        self._precision = dot_precision(problem)

    def source(self) -> KernelSource:
        parameters = tuple(self._parameters())
        lines = [*self._setup(), *(f"{INDENT}{line}" for line in self._tile()), *self._finish()]
        fields = described_fields(
            self._program,
            self._problem,
            self._config,
            EMITTER,
            resumes=self._resumes,
            hands_on=False,
        )
        title = f"Attention backward: gradients of tables by {self._reach}"
        name = f"grad_by_{self._reach}"
        text = module_text(header_text(title, fields), name, parameters, lines)
        tables = tables_read([self._program.mask])
        return KernelSource(name, text, parameters, self._problem, self._config, tables)

    def _parameters(self) -> Iterator[KernelParameter]:
        terms, tables = TermParameters(self._terms), tables_read([self._program.mask])
        yield from self._access.pointers()
        for name in ("lse", "delta", *(entry.name for entry in self._entries)):
            yield KernelParameter(f"{name}_ptr", "*fp32", 4)
        for table in tables:
            yield table.pointer
        yield from terms.pointers()
        yield from terms.scalars()
        for name in ("q_len", "kv_len", "q_offset"):
            yield KernelParameter(name, "i32")
        yield from self._access.strides()
        for table in tables:
            yield from table.sizes
        for name in sorted(self._names() - _GIVEN - {"kv_heads"}):
            yield KernelParameter(name, "i32")

    def _names(self) -> set[str]:
        """The scalars that the mask and the terms read."""
        exprs: list[Expr | IntExpr] = [self._program.mask]
        for term in self._terms:
            exprs += discrete(term)
        leaves = (leaf for expr in exprs for leaf in walk(expr))
        return {scalar_name(leaf) for leaf in leaves if isinstance(leaf, (Var, Param))}

    def _setup(self) -> Iterator[str]:
        """The program's tiles, down to the head of its loop."""
        group, block = self._problem.group, self._config.block_k
        yield f"BLOCK_Q: tl.constexpr = {block}"
        yield f"BLOCK_K: tl.constexpr = {block}"
        yield "place = tl.program_id(0)"
        yield "head = tl.program_id(1)"
        yield "batch = tl.program_id(2)"
        yield "kv_head = head" if group == 1 else f"kv_head = head // {group}"
        yield "heads = tl.num_programs(1)"
        if "kv_heads" in self._names():
            yield f"kv_heads = tl.num_programs(1) // {group}"
        yield from self._access.key_lines()
        yield self._access.row_numbers_address("lse")
        yield self._access.row_numbers_address("delta")
        yield from self._writer.program_lines
        yield "query_tiles = (q_len + BLOCK_Q - 1) // BLOCK_Q"
        yield "columns = tl.arange(0, BLOCK_K)"
        if self._reach == "distance":
            yield "# The diagonals of tiles: the first one has the last key tile and query tile 0."
            yield "diagonal = place - ((kv_len + BLOCK_K - 1) // BLOCK_K - 1)"
            yield "turned_columns = tl.arange(0, BLOCK_Q)[:, None] + columns[None, :]"
            yield "above = turned_columns < BLOCK_K"
            yield "turned_columns = turned_columns % BLOCK_K"
        first = "((batch.to(tl.int64) * heads + head) * tl.num_programs(0) + place)"
        for entry in self._entries:
            for part in range(self._parts):
                base = f"{first} * {self._parts * block} + {part * block} + columns"
                yield f"{entry.name}_place_{part} = {entry.name}_ptr + {base}"
                start = "tl.zeros([BLOCK_K], tl.float32)"
                if self._resumes:
                    start = f"tl.load({entry.name}_place_{part})"
                yield f"{entry.name}_{part} = {start}"
        begin, end = "0", "query_tiles"
        if self._reach == "distance":
            key_tiles = "(kv_len + BLOCK_K - 1) // BLOCK_K"
            begin, end = (
                "tl.maximum(diagonal, 0)",
                f"tl.minimum(query_tiles, {key_tiles} + diagonal)",
            )
        yield f"for tile in range({begin}, {end}):"

    @property
    def _parts(self) -> int:
        """How many sums there are for each column of a tile."""
        return 2 if self._reach == "distance" else 1

    def _tile(self) -> Iterator[str]:
        yield "row_first = tile * BLOCK_Q"
        yield "rows = row_first + tl.arange(0, BLOCK_Q)"
        yield "row_exists = rows < q_len"
        key_tile = "place" if self._reach == "key" else "(tile - diagonal)"
        yield f"k_first = {key_tile} * BLOCK_K"
        yield "q = q_offset + rows[:, None]"
        yield self._access.tile_keys(masked=True)
        yield from self._mask.row_lines
        yield from self._mask.key_lines
        yield f"allowed = {self._mask.expression} & row_exists[:, None]"
        yield "if tl.max(tl.max(allowed.to(tl.int32), 1), 0) > 0:"
        yield from (f"{INDENT}{line}" for line in self._shares())

    def _shares(self) -> Iterator[str]:
        """What a tile adds, of which the mask does not hide all."""
        access = self._access
        logit, *slopes = self._texts
        yield from access.row_tile_lines()
        yield from access.tile_start(masked=True)
        yield from access.tile_loads("key", masked=True)
        keys, values = len(access.key_parts), len(access.value_parts)
        yield from product_lines("scores", "query", "key", keys, self._precision)
        yield from access.tile_loads("value", masked=True)
        yield from product_lines("grad_weights", "grad_out", "value", values, self._precision)
        infinite = 'float("inf")'
        yield f"lse = {access.load_row_numbers('lse', infinite)}"
        yield f"delta = {access.load_row_numbers('delta', '0.0')}"
        yield from self._writer.tile_lines
        yield f"weights = tl.exp2({logit} - lse[:, None] * 1.4426950408889634)"
        yield "grad_logits = weights * (grad_weights - delta[:, None])"
        for entry, slope in zip(self._entries, slopes, strict=True):
            yield f"share = tl.where(allowed, grad_logits * {slope}, 0.0)"
            if self._reach == "key":
                yield f"{entry.name}_0 += tl.sum(share, 0)"
                continue
            turned = (
                "turned = tl.gather(share, turned_columns, 1)",
                f"{entry.name}_0 += tl.sum(tl.where(above, turned, 0.0), 0)",
                f"{entry.name}_1 += tl.sum(tl.where(above, 0.0, turned), 0)",
            )
            corners = corner_texts(entry.lookup, entry.name)
            if corners is None:
                yield from turned
                continue
            yield from (line for line in EDGES if line not in self._writer.tile_lines)
            yield from corners.lines
            yield f"if {corners.same}:"
            yield f"{INDENT}# All distances of the tile choose the entry that the first one does."
            whole = "tl.sum(tl.sum(share, 1), 0)"
            yield f"{INDENT}{entry.name}_0 += tl.where(columns == 0, {whole}, 0.0)"
            yield "else:"
            yield from (f"{INDENT}{line}" for line in turned)

    def _finish(self) -> Iterator[str]:
        for entry in self._entries:
            for part in range(self._parts):
                yield f"tl.store({entry.name}_place_{part}, {entry.name}_{part})"
