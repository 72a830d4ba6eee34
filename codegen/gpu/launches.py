"""A launch: one kernel over one grid, and where its arguments come from.

Sizes, strides and numbers go in, no tensor; knows neither torch nor triton.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from patterncc.codegen.gpu.interval import LIMIT, MOST_PROGRAMS
from patterncc.codegen.gpu.layout import LINE
from patterncc.dsl.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from patterncc.codegen.gpu.kernel_source import KernelSource
    from patterncc.codegen.gpu.layout import Layout
    from patterncc.codegen.gpu.table_source import Table
    from patterncc.codegen.problem import Problem


class Buffer(NamedTuple):
    """Memory that a launch fills for later ones, which point to it by name."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["int32", "float32"] = "int32"


class Described(NamedTuple):
    """A tensor descriptor argument: which tensor, and how to describe it."""

    tensor: str
    sizes: list[int]
    strides: list[int]
    box: list[int]


class TableSize(NamedTuple):
    """An argument that is a size of a table, and is that of the table which a call gives.

    Attributes:
        place: Of the argument, among `Launch.rest`.
        tensor: The table, as pointers call it.
        axis: Of the table.
        beyond: How much longer that is than the argument.
    """

    place: int
    tensor: str
    axis: int
    beyond: int


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel over one grid, with all arguments but the tensors.

    Attributes:
        source: The kernel.
        aligned: Whether its variant for 16-byte aligned tensors may run.
        grid: Programs along each axis: tiles of every class of rows, heads, batch entries.
        described: The descriptor arguments, which come first.
        pointers: What the pointer arguments after them point to: `query`, `out`, `table_NAME`, ...
        rest: The arguments after the pointers.
        sizes: Those of them that every call has its own of.
        shaped_by: The tables that grid and buffers depend on, with the shapes that they were
            planned for.
        buffers: Memory that this launch is the first to need.
        follows_long: Whether the launch before it takes so long that the host need not be quick.
    """

    source: KernelSource
    aligned: bool
    grid: tuple[int, int, int]
    described: tuple[Described, ...]
    pointers: tuple[str, ...]
    rest: tuple[float | int, ...]
    sizes: tuple[TableSize, ...] = ()
    shaped_by: tuple[tuple[str, tuple[int, ...]], ...] = ()
    buffers: tuple[Buffer, ...] = ()
    follows_long: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A call as plans see it.

    Attributes:
        problem: The shape class.
        target: `cuda:90`, `hip:gfx942`, or the interpreter's.
        layouts: Of its tensors, by name; query and key are among them.
        env: The scalars that the pattern reads, with `q_len`, `kv_len` and `q_offset`.
        factors: Values of the kernels' floating-point parameters, by name.
        shapes: Of the tables that the pattern reads, by name.
        multiprocessors: Of the device.
    """

    problem: Problem
    target: str
    layouts: Mapping[str, Layout]
    env: Mapping[str, int]
    factors: Mapping[str, float]
    shapes: Mapping[str, Sequence[int]]
    multiprocessors: int = 1

    @property
    def batch(self) -> int:
        """Batch entries."""
        return self.layouts["query"].sizes[0]

    @property
    def heads(self) -> int:
        """Heads of the query."""
        return self.layouts["query"].sizes[1]

    @property
    def q_len(self) -> int:
        """Rows."""
        return self.layouts["query"].sizes[2]

    @property
    def kv_len(self) -> int:
        """Keys."""
        return self.layouts["key"].sizes[2]


def call_of(
    problem: Problem,
    target: str,
    layouts: Sequence[Layout],
    env: Mapping[str, int],
    factors: Mapping[str, float],
    shapes: Mapping[str, Sequence[int]],
    multiprocessors: int = 1,
) -> Call:
    """A call within what kernels count with; arguments as `Call`'s, `env` without the lengths.

    Raises:
        UnsupportedError: 32-bit positions or the grid cannot hold a number; names it.
    """
    named = {layout.name: layout for layout in layouts}
    lengths = {"q_len": named["query"].sizes[2], "kv_len": named["key"].sizes[2]}
    call = Call(problem, target, named, {**env, **lengths}, factors, shapes, multiprocessors)
    if max(call.batch, call.heads) > MOST_PROGRAMS:
        raise UnsupportedError(
            f"{call.batch} batch entries of {call.heads} heads are too many for one launch",
            f"at most {MOST_PROGRAMS} of each: split the call",
        )
    last = {"q_offset + q_len": call.env["q_offset"] + call.q_len}
    for name, value in {**call.env, **last}.items():
        if not -LIMIT <= value <= LIMIT:
            raise UnsupportedError(
                f"{name} is {value}, beyond what kernels count with",
                f"at most {LIMIT} in magnitude",
            )
    return call


def planned_launch(
    source: KernelSource,
    grid: tuple[int, int, int],
    call: Call,
    *,
    step: int = 1,
    numbers: Mapping[str, int] | None = None,
    shaped_by: tuple[str, ...] = (),
    buffers: tuple[Buffer, ...] = (),
) -> Launch:
    """A launch with its arguments.

    Args:
        source: The kernel.
        grid: As in `Launch`.
        call: What the arguments are taken from.
        step: How far apart the rows of a class are in tensors that are described in classes.
        numbers: Values of parameters that the call does not have.
        shaped_by: Names of the tables that grid and buffers depend on.
        buffers: As in `Launch`.

    Raises:
        UnsupportedError: A table is too large to look up in.
        ConfigError: The kernel reads a scalar or a table that the call does not give.
    """
    # Other pointers promise no more than what their elements do.
    promised = {_tensor(p.name) for p in source.parameters if p.box or p.multiple == LINE}
    return Launch(
        source,
        all(layout.aligned for name, layout in call.layouts.items() if name in promised),
        grid,
        tuple(_described(source, call.layouts, step)),
        tuple(_tensor(p.name) for p in source.parameters if p.type.startswith("*")),
        _arguments(source, call, numbers or {}),
        tuple(_sizes(source)),
        tuple((name, tuple(call.shapes[name])) for name in shaped_by),
        buffers,
    )


def ceildiv(value: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-value // divisor)


def _tensor(parameter: str) -> str:
    """The tensor that a pointer or a descriptor is called after."""
    return parameter.removesuffix("_ptr").partition("_desc_")[0]


def _described(
    source: KernelSource, layouts: Mapping[str, Layout], step: int
) -> Iterator[Described]:
    """How to describe the tensors of a kernel's descriptor parameters."""
    for parameter in source.parameters:
        if not parameter.box:
            continue
        layout = layouts[_tensor(parameter.name)]
        grouped = len(parameter.box) == 5
        sizes, strides = (
            layout.in_groups(step) if grouped else (list(layout.sizes), layout.descriptor_strides)
        )
        yield Described(layout.name, sizes, strides, list(parameter.box))


def _arguments(
    source: KernelSource, call: Call, numbers: Mapping[str, int]
) -> tuple[float | int, ...]:
    """The values of a kernel's parameters that are neither descriptors nor pointers."""
    env = call.env
    values: dict[str, float | int] = {f"number_{name}": value for name, value in env.items()}
    values |= env
    values |= {f"call_{name}": env[name] for name in ("q_len", "kv_len", "q_offset")}
    values |= call.factors
    values |= numbers
    for layout in call.layouts.values():
        for axis, step in zip(("batch", "head", "row"), layout.steps, strict=True):
            values[f"{layout.name}_stride_{axis}"] = step
    values |= _table_sizes(source.tables, call.shapes)
    names = _names_of_rest(source)
    missing = [name.removeprefix("number_") for name in names if name not in values]
    if missing:
        raise ConfigError(f"the pattern reads {', '.join(missing)}, which the call does not give")
    return tuple(values[name] for name in names)


def serves(launch: Launch, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Is a launch right for calls with tables of other shapes, too? Most have no more of them than
    their sizes.

    Args:
        launch: As planned.
        shapes: Of the tables that the pattern reads, by name.

    Raises:
        UnsupportedError, ConfigError: As from `planned_launch`.
    """
    _table_sizes(launch.source.tables, shapes)
    return all(tuple(shapes[name]) == shape for name, shape in launch.shaped_by)


def _sizes(source: KernelSource) -> Iterator[TableSize]:
    """The arguments after the pointers that are sizes of tables."""
    names = _names_of_rest(source)
    for table in source.tables:
        for axis, size in enumerate(table.sizes):
            if size.name in names:
                place = names.index(size.name)
                yield TableSize(place, f"table_{table.name}", axis, table.beyond)


def _names_of_rest(source: KernelSource) -> list[str]:
    """The parameters that are neither descriptors nor pointers."""
    return [p.name for p in source.parameters if not p.box and not p.type.startswith("*")]


def _table_sizes(tables: Iterable[Table], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The values of the parameters that hold sizes of tables.

    Raises:
        UnsupportedError: A table is too large to look up in.
        ConfigError: A table was not given, or has another number of axes.
    """
    values: dict[str, int] = {}
    for table in tables:
        if table.name not in shapes:
            raise ConfigError(f"the pattern reads the table {table.name}, which was not given")
        shape = shapes[table.name]
        if len(shape) != table.axes:
            raise ConfigError(
                f"the table {table.name} has {len(shape)} axes, the pattern reads {table.axes}"
            )
        if table.reach(shape) >= 2**31:
            raise UnsupportedError(
                f"the table {table.name} of {tuple(shape)} spreads what one tile "
                "looks up over 2^31 entries or more",
                "put the axes that are indexed by head, layer or batch first",
            )
        values |= table.size_values(shape)
    return values
