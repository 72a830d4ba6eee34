"""What kernels share that visit tiles, a program for each query tile or for each key tile: checks,
products, and the part of the signature that follows from the program and the score terms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from patterncc.codegen.gpu.access_source import TYPES
from patterncc.codegen.gpu.bound_source import expressions
from patterncc.codegen.gpu.class_source import CLASS_NAMES, length_parameters
from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.gpu.kernel_terms import TermParameters
from patterncc.codegen.gpu.list_source import CAPACITY, FIRST_TILE, LIST_PARAMETERS
from patterncc.codegen.gpu.mask_source import scalar_name
from patterncc.codegen.gpu.run_list_source import RUN_PARAMETERS
from patterncc.codegen.gpu.table_source import tables_read
from patterncc.codegen.ir import BOX_NAMES, K_LAST, K_TILE, Q_FIRST, Q_LAST, RESIDUE
from patterncc.codegen.listing import kernel_mask, ranked
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import K, Param, Q, Var, walk
from patterncc.dsl.score.nodes import discrete

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.ir import BlockProgram, Direction
    from patterncc.codegen.problem import Problem
    from patterncc.dsl.mask import Expr
    from patterncc.dsl.score.nodes import Real

_OF_TILE = frozenset(var.name for var in (Q, K, Q_FIRST, Q_LAST, K_TILE, K_LAST, RESIDUE))
_OF_GRID = frozenset({"head", "kv_head", "batch", "heads", "kv_heads"})
_LENGTHS = frozenset({"q_len", "kv_len", "q_offset"})


def check_dtype(problem: Problem) -> None:
    """Refuses a dtype that no kernel computes in.

    Raises:
        UnsupportedError: Names it.
    """
    if problem.dtype not in TYPES:
        raise UnsupportedError(
            f"no GPU kernel computes in {problem.dtype}",
            "use float16, bfloat16 or float32, or the CPU",
        )


def check_program(program: BlockProgram, problem: Problem, config: KernelConfig) -> None:
    """Refuses what no kernel is written for.

    Raises:
        UnsupportedError: The dtype has no kernel.
        ConfigError: The config's tiles are not the program's.
    """
    check_dtype(problem)
    if (program.block_q, program.tile_keys) != (config.block_q, config.block_k):
        raise ConfigError(
            f"tiles of {config.block_q}x{config.block_k} for a program lowered for others",
            (f"{program.block_q}x{program.tile_keys}",),
        )


def dot_precision(problem: Problem) -> str:
    """The last argument of a matrix product: float32 is computed as such, for tensor cores would
    round the operands to 10 bits."""
    return ', input_precision="ieee"' if problem.dtype == "float32" else ""


def product_lines(name: str, left: str, right: str, parts: int, precision: str) -> Iterator[str]:
    """The product of two tiles that share the head dimension, over all its parts.

    Args:
        name: Of the result, a row for each of `left` and a column for each of `right`.
        left, right: What the tiles' parts are called, before their numbers.
        parts: How many there are.
        precision: Of `dot_precision`.
    """
    for number in range(parts):
        onto = f", {name}" if number else ""
        yield f"{name} = tl.dot({left}_{number}, {right}_{number}.T{onto}{precision})"


class _Access(Protocol):
    """How a kernel reaches its tensors."""

    def descriptors(self) -> Iterator[KernelParameter]: ...
    def pointers(self) -> Iterator[KernelParameter]: ...
    def strides(self) -> Iterator[KernelParameter]: ...


class Computed:
    """What a kernel computes of a program and of the score terms, and what it is given for that.

    Args:
        program: The pattern, or one pass of it.
        direction: Which of its sweeps the kernel runs.
        masked: Has it partial tiles?
        terms: What it computes of the score terms, as `in_classes` gives it.

    Attributes:
        tables: The pattern's tables that it reads.
        leaves: The scalars that it reads.

    Raises:
        ConfigError: The program is gathered and the direction transposed.
    """

    def __init__(
        self, program: BlockProgram, direction: Direction, masked: bool, terms: Sequence[Real]
    ) -> None:
        if direction == "transposed" and program.gathered > 1:
            raise ConfigError(
                f"key tiles are gathered from runs of {program.block_k}, which no kernel with a "
                "program for each key tile does",
                ("a program that was lowered without gathering",),
            )
        self._tiling = program.tiling
        self._lists: tuple[KernelParameter, ...] = ()
        self._list_numbers: tuple[KernelParameter, ...] = ()
        if ranked(program):
            self._lists = RUN_PARAMETERS
        elif program.listed or program.gathered > 1:
            self._lists = LIST_PARAMETERS
            self._list_numbers = (CAPACITY, *([FIRST_TILE] * (program.gathered > 1)))
        self._term_parameters = TermParameters(terms)
        exprs = list(_expressions(program, direction, masked, terms))
        self.tables = tables_read(exprs)
        self.leaves = [
            leaf for expr in exprs for leaf in walk(expr) if isinstance(leaf, (Var, Param))
        ]

    def parameters(
        self,
        access: _Access,
        pointers: Iterable[KernelParameter],
        scalars: Iterable[KernelParameter],
        before_strides: Iterable[KernelParameter] = (),
        after_strides: Iterable[KernelParameter] = (),
    ) -> Iterator[KernelParameter]:
        """All parameters of the kernel.

        Args:
            access: Gives those of its tensors.
            pointers, scalars, before_strides, after_strides: The kernel's own, by their places.
        """
        lengths = length_parameters(self._tiling)
        yield from access.descriptors()
        yield from access.pointers()
        yield from pointers
        yield from self._lists
        for table in self.tables:
            yield table.pointer
        yield from self._term_parameters.pointers()
        yield from scalars
        yield from self._term_parameters.scalars()
        for name in lengths:
            yield KernelParameter(name, "i32")
        yield from before_strides
        yield from access.strides()
        yield from after_strides
        yield from self._list_numbers
        for table in self.tables:
            yield from table.sizes
        known = {*_OF_TILE, *BOX_NAMES, *_OF_GRID, *_LENGTHS, *CLASS_NAMES, *lengths}
        for name in sorted({scalar_name(leaf) for leaf in self.leaves} - known):
            yield KernelParameter(name, "i32")


def _expressions(
    program: BlockProgram, direction: Direction, masked: bool, terms: Sequence[Real]
) -> Iterator[Expr]:
    if ranked(program) or not (program.listed or program.gathered > 1):
        yield from expressions(program.sweeps(direction))
    yield program.tiling.k_class
    if program.patches is not None:
        yield from program.patches.before("q" if direction == "forward" else "k")
    if masked:
        yield kernel_mask(program)
    for term in terms:
        yield from discrete(term)
