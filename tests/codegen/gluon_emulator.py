"""Runs generated Gluon kernels on the CPU: their text, with Gluon's names done by torch.

The functions of a program run as threads, one for each warpgroup that computes and one for the warp
that loads, and meet at barriers as on the device. What is asynchronous happens as late as it may:
products when they are waited for, copies and additions out of shared memory when their tile is. So
a tile that is overwritten too early shows in the results, and a barrier that nobody reaches is an
error. Copies into shared memory happen at once: the earliest time shows whether their tile was
free.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch

from patterncc.codegen.gpu.gluon.dialect import ADD_OUT, PRELUDE
from patterncc.codegen.gpu.gluon.turn_source import TURN_FUNCTIONS
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.launches import Launch

DENSE_TEXTS = (
    "full",
    "causal",
    "around(50)",
    "streaming(5, 70)",
    "local_strided(16, 4, 3)",
    "ladder(4, 64, 48, 3)",
    "chunked(100)",
    "if head in {0, 3} then causal else streaming(4, 50)",
    "k > q",
    "q > 100000 and k < 5",
)
"""Patterns of one pass over consecutive tiles, which all Gluon kernels do."""

_PATIENCE = 20.0
"""Seconds that a thread waits for a barrier."""

_BITS = {
    ".to(tl.uint32, bitcast=True)": ".to(tl.int64).bitwise_and(0xFFFFFFFF)",
    ".to(tl.int32, bitcast=True)": ".to(tl.int32)",
}
"""Bits read as another type, as torch has it."""

_COMPARISONS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "lt": torch.lt,
    "le": torch.le,
    "eq": torch.eq,
    "ne": torch.ne,
}


class Deadlock(AssertionError):
    """A thread waited for what never came, or another one failed."""


@dataclass
class Barrier:
    """An mbarrier: a phase is over when all arrivals and all bytes are there."""

    condition: threading.Condition
    count: int = 0
    pending: int = 0
    bytes: int = 0
    phase: int = 0

    def arrive(self, expected: int = 0) -> None:
        with self.condition:
            assert self.pending > 0, "more arrivals than the barrier counts"
            self.pending -= 1
            self.bytes += expected
            self._turn()

    def bring(self, size: int) -> None:
        with self.condition:
            self.bytes -= size
            self._turn()

    def wait(self, phase: int) -> None:
        with self.condition:
            # The phase before the first one counts as over.
            if not self.condition.wait_for(lambda: self.phase != phase, _PATIENCE):
                raise Deadlock(f"phase {phase} of a barrier never ends")

    def _turn(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phase ^= 1
            self.pending = self.count
            self.condition.notify_all()


@dataclass
class Tile:
    """A stretch of shared memory, or several."""

    data: torch.Tensor

    @property
    def shape(self) -> list[int]:
        return list(self.data.shape)

    def index(self, number: Any) -> Tile:
        number = int(number)
        assert 0 <= number < self.data.shape[0], "outside of shared memory"
        return Tile(self.data[number])

    def reshape(self, shape: list[int]) -> Tile:
        return Tile(self.data.view(shape))

    def slice(self, start: int, length: int, dim: int) -> Tile:
        return Tile(self.data.narrow(dim, start, length))

    def permute(self, order: tuple[int, ...]) -> Tile:
        return Tile(self.data.permute(order))

    def load(self, layout: Any) -> torch.Tensor:
        return self.data.clone()

    def store(self, value: torch.Tensor) -> None:
        assert value.dtype == self.data.dtype
        self.data.copy_(value)


@dataclass
class Barriers:
    """Barriers in shared memory."""

    all: list[Barrier]

    def index(self, number: Any) -> Barrier:
        place = int(number)
        assert 0 <= place < len(self.all), "outside of shared memory"
        return self.all[place]


@dataclass
class Pointer:
    """Places in a tensor without gaps."""

    memory: torch.Tensor
    offset: Any = 0

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.memory, self.offset + offset)


@dataclass
class Descriptor:
    """A tensor as copies see it.

    Attributes:
        tensor: With as many axes as a box.
        box: The shape of a tile.
    """

    tensor: torch.Tensor
    box: tuple[int, ...]

    def places(self, start: list[Any]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """What of the box lies within the tensor: there, and in the tile."""
        there, here = [], []
        for first, size, length in zip(start, self.box, self.tensor.shape, strict=True):
            low = int(first)
            begin, end = max(low, 0), max(min(low + size, length), 0)
            end = max(begin, end)
            there.append(slice(begin, end))
            here.append(slice(begin - low, end - low))
        return tuple(there), tuple(here)


@dataclass
class _Pending:
    """A product that was asked for."""

    compute: Callable[[], torch.Tensor]
    found: list[torch.Tensor] = field(default_factory=list)

    def done(self) -> torch.Tensor:
        if not self.found:
            self.found.append(self.compute())
        return self.found[0]


class _Thread(threading.local):
    """What each thread has in flight."""

    def __init__(self) -> None:
        self.products: list[_Pending] = []
        self.copies: list[Callable[[], None]] = []


def run_launch(launch: Launch, tensors: Mapping[str, torch.Tensor]) -> None:
    """Runs a planned launch of a Gluon kernel.

    Args:
        launch: The launch.
        tensors: What its descriptors and pointers are of, by name: CPU tensors.
    """
    described = [
        Descriptor(torch.as_strided(tensors[name], sizes, strides), tuple(box))
        for name, sizes, strides, box in launch.described
    ]
    pointers = [Pointer(_memory(tensors[name])) for name in launch.pointers]
    Emulator(launch.source, (*described, *pointers, *launch.rest)).run(launch.grid)


class Emulator:
    """Runs the programs of one kernel, one after the other.

    Args:
        source: The kernel.
        arguments: Its arguments in order: `Descriptor`, `Pointer`, numbers.
    """

    def __init__(self, source: KernelSource, arguments: Iterable[Any]) -> None:
        self._source = source
        self._arguments = [_number(argument) for argument in arguments]
        self._own = _Thread()
        self._condition = threading.Condition()
        self._grid = (1, 1, 1)
        self._program = (0, 0, 0)

    def run(self, grid: tuple[int, int, int]) -> None:
        """Runs all programs of a grid.

        Raises:
            AssertionError: A program reaches outside of a tensor or of shared memory, or reads a
                product that may still run; `Deadlock` where it waits for what never comes.
        """
        scope = self.names()
        text = (
            self._source.text.replace(PRELUDE, "").replace(ADD_OUT, "").replace(TURN_FUNCTIONS, "")
        )
        for written, means in _BITS.items():
            text = text.replace(written, means)
        exec(compile(text, self._source.name, "exec"), scope)
        self._grid = grid
        for batch, head, tile in product(*(range(size) for size in reversed(grid))):
            self._program = (tile, head, batch)
            scope[self._source.name](*self._arguments)

    # -------------------------------------------------------------------------------- names

    def names(self) -> dict[str, Any]:
        """What kernels call, by name."""
        tl = SimpleNamespace(
            int1=torch.bool,
            int32=torch.int32,
            int64=torch.int64,
            uint32=torch.int64,  # holds all of them
            float32=torch.float32,
            bfloat16=torch.bfloat16,
            float16=torch.float16,
            constexpr=lambda value: value,
            static_range=range,
            program_id=lambda axis: _number(self._program[axis]),
            num_programs=lambda axis: _number(self._grid[axis]),
            num_warps=lambda: 4,
            where=_where,
            # Of a NaN and a number they give the number, as the device does.
            minimum=lambda a, b: torch.fmin(*_alike(a, b)),
            maximum=lambda a, b: torch.fmax(*_alike(a, b)),
            cast=lambda value, dtype: torch.as_tensor(value).to(dtype),
            arange=lambda start, end, layout=None: torch.arange(start, end, dtype=torch.int32),
            full=lambda shape, value, dtype, layout=None: torch.full(shape, value, dtype=dtype),
            convert_layout=lambda value, layout, assert_trivial=False: value,
            sum=lambda value, axis: value.sum(axis),
            max=lambda value, axis=None: value.max() if axis is None else value.amax(axis),
            min=lambda value: value.min(),
            split=lambda value: value.unbind(-1),
            join=lambda left, right: torch.stack((left, right), -1),
            zeros_like=torch.zeros_like,
            abs=torch.abs,
            floor=torch.floor,
            exp=torch.exp,
            exp2=torch.exp2,
            log=torch.log,
            sqrt=torch.sqrt,
            log2=torch.log2,
            load=_load,
            store=_store,
            inline_asm_elementwise=_assembly,
            **dict.fromkeys(_LAYOUTS, _layout),
        )
        return {
            "tl": tl,
            "gluon": SimpleNamespace(jit=lambda function: function),
            "BARRIER": Barriers,
            "allocate": self._allocate,
            "init_barrier": _init_barrier,
            "expect_bytes": lambda barrier, size: barrier.arrive(size),
            "arrive": lambda barrier, pred=True: barrier.arrive() if pred else None,
            "wait": lambda barrier, phase: barrier.wait(int(phase)),
            "copy_in": _copy_in,
            "copy_out": self._copy_out,
            "add_out": self._add_out,
            "copied_out": self._copied_out,
            "wait_for_turn": _wait_for_turn,
            "pass_turn": self._pass_turn,
            "multiply": self._multiply,
            "finish": self._finish,
            "show_to_copies": lambda: None,
            "synchronize": lambda: None,
            "running_sum": lambda values: values.cumsum(0).to(values.dtype),
            "run_apart": self._run_apart,
        }

    def _allocate(self, dtype: torch.dtype, shape: list[int], layout: Any) -> Tile | Barriers:
        if layout is Barriers:
            return Barriers([Barrier(self._condition) for _ in range(shape[0])])
        garbage = float("nan") if dtype.is_floating_point else 2**30
        return Tile(torch.full(shape, garbage, dtype=dtype))

    def _copy_out(self, descriptor: Descriptor, start: list[Any], tile: Tile) -> None:
        there, here = descriptor.places(start)

        def copy() -> None:
            descriptor.tensor[there] = tile.data[here]

        self._own.copies.append(copy)

    def _add_out(self, descriptor: Descriptor, start: list[Any], tile: Tile) -> None:
        assert all(int(first) >= 0 for first in start), "an H200 stops at what lies before a tensor"
        there, here = descriptor.places(start)

        def add() -> None:
            with self._condition:
                descriptor.tensor[there] += tile.data[here]

        self._own.copies.append(add)

    def _copied_out(self, running: int) -> None:
        copies = self._own.copies
        while len(copies) > running:
            copies.pop(0)()

    def _pass_turn(self, counter: Pointer) -> None:
        self._copied_out(0)
        with self._condition:
            counter.memory[int(counter.offset)] += 1

    def _multiply(
        self, left: Any, right: Tile, onto: Any, *, use_acc: bool = True, is_async: bool = False
    ) -> _Pending:
        assert is_async

        def compute() -> torch.Tensor:
            rows = left.data if isinstance(left, Tile) else left
            product = rows.float() @ right.data.float()
            if not use_acc:
                return product
            # Products run in the order in which they were asked for.
            return product + (onto.done() if isinstance(onto, _Pending) else onto)

        pending = _Pending(compute)
        self._own.products.append(pending)
        return pending

    def _finish(self, running: int, deps: tuple[Any, ...]) -> Any:
        products = self._own.products
        while len(products) > running:
            products.pop(0).done()
        for wanted in deps:
            # What no product has been added to yet may stand beside what one is added to.
            assert not isinstance(wanted, _Pending) or wanted.found, (
                "a product is read that may still run"
            )
        found = [one.found[0] if isinstance(one, _Pending) else one for one in deps]
        return found[0] if len(found) == 1 else tuple(found)

    def _run_apart(self, functions: list[Any], warps: list[int], registers: list[int]) -> None:
        failures: list[BaseException] = []

        def run(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
            try:
                function(*arguments)
                assert not self._own.copies, "a program ends before its tiles were read"
                assert not self._own.products
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=run, args=one) for one in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


_LAYOUTS = (
    "NVMMADistributedLayout",
    "NVMMASharedLayout",
    "SwizzledSharedLayout",
    "DotOperandLayout",
    "BlockedLayout",
    "SliceLayout",
)


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    """All that lies behind a tensor's first element, as one row."""
    first = tensor.storage_offset()
    length = tensor.untyped_storage().nbytes() // tensor.element_size() - first
    return torch.as_strided(tensor, (length,), (1,), first)


def _layout(*fields: Any, **named: Any) -> str:
    return "layout"


def _number(value: Any) -> Any:
    if isinstance(value, int):
        return torch.tensor(value, dtype=torch.int32)
    return value


def _alike(left: Any, right: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Two operands as tensors of one dtype; a number takes that of the other."""
    if not isinstance(left, torch.Tensor):
        left = torch.as_tensor(left, dtype=getattr(right, "dtype", None))
    if not isinstance(right, torch.Tensor):
        right = torch.as_tensor(right, dtype=left.dtype)
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.to(dtype), right.to(dtype)


def _where(condition: Any, then: Any, otherwise: Any) -> torch.Tensor:
    then, otherwise = _alike(then, otherwise)
    return torch.where(torch.as_tensor(condition), then, otherwise)


def _wait_for_turn(counter: Pointer, turn: torch.Tensor) -> None:
    """Programs run one after the other, as they are started: who waits waits for a later one."""
    if int(_load(counter)) != int(turn):
        raise Deadlock(f"turn {int(turn)} of a tile that {int(_load(counter))} have added to")


def _load(pointer: Pointer, mask: Any = None, other: float = 0.0) -> torch.Tensor:
    place = torch.as_tensor(pointer.offset).long()
    mask = torch.ones_like(place, dtype=torch.bool) if mask is None else mask.expand(place.shape)
    memory = pointer.memory
    assert bool(((place >= 0) & (place < memory.numel()))[mask].all()), "outside of memory"
    found = memory[torch.where(mask, place, 0)]
    return torch.where(mask, found, torch.as_tensor(other, dtype=memory.dtype))


def _store(pointer: Pointer, value: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    place = torch.as_tensor(pointer.offset).long()
    mask = torch.ones_like(place, dtype=torch.bool) if mask is None else mask.expand(place.shape)
    place, memory = place[mask], pointer.memory
    assert bool(((place >= 0) & (place < memory.numel())).all()), "outside of memory"
    memory[place] = value.expand(mask.shape)[mask]


def _init_barrier(barrier: Barrier, *, count: int) -> None:
    barrier.count = barrier.pending = count


def _copy_in(descriptor: Descriptor, start: list[Any], barrier: Barrier, tile: Tile) -> None:
    there, here = descriptor.places(start)
    tile.data.zero_()
    tile.data[here] = descriptor.tensor[there]
    barrier.bring(tile.data.numel() * tile.data.element_size())


def _assembly(text: str, registers: str, operands: list[Any], **options: Any) -> Any:
    """The assembly that kernels have: reciprocals, scores under limits, pairs of weights."""
    if text.startswith("rcp."):
        return torch.reciprocal(operands[0])
    if text.startswith("cvt.rn.bf16x2.f32"):
        return torch.stack(operands, -1).to(torch.bfloat16)
    if text.startswith("mov.b32 {"):
        return operands[0].unbind(-1)
    scores = operands[0]
    allowed = torch.ones(scores.shape, dtype=torch.bool)
    for name, left, right in re.findall(r"setp\.(\w\w)(?:\.and)?\.s32 p, \$(\d+), \$(\d+)", text):
        a, b = _alike(operands[int(left) - 1], operands[int(right) - 1])
        allowed &= _COMPARISONS[name](a, b)
    return torch.where(allowed, scores, float("-inf"))
