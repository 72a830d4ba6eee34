"""Launches as they run: what the driver is given, by the short way and by Triton's; tables of other
shapes; memory for results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patterncc.codegen.gpu import bound_launch, launch
from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.backward_plan import BackwardPlanner
from patterncc.codegen.gpu.bound_launch import DirectLaunch, TritonLaunch
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.launches import Launch, serves
from patterncc.codegen.gpu.memory import Room
from patterncc.codegen.gpu.signature import (
    Kept,
    forget_all,
    inputs_signature,
    layout_signature,
)
from patterncc.codegen.gpu.steps import layout_of
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError
from tests.codegen.attention import lowered

_launch: Any = launch  # triton has no types
PROBLEM = Problem("bfloat16", 64, 64)
PACKED = "pattern p(doc: segments): causal and doc[q] == doc[k]"
TABLES = {
    "documents": (PACKED, {"doc": (7,)}),
    "heads and tokens": (
        "pattern p(w: int[head], s: int[token]): 0 <= q - k < w[head] and s[q] == s[k]",
        {"w": (2,), "s": (100,)},
    ),
}


def tensors(head_dim: int = 64) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros(1, 2, 100, head_dim, dtype=torch.bfloat16)
        for name in ("query", "key", "value", "out", "grad_out")
    }


def forward_launches(
    text: str, shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[Launch, ...]:
    layouts = [layout_of(name, tensor) for name, tensor in tensors().items() if name != "grad_out"]
    planner = Planner(lowered(load(text)))
    return planner.plan(PROBLEM, "cuda:90", layouts, {"q_offset": 0}, 1.0, shapes or {})


def backward_launches(text: str, shapes: Mapping[str, Sequence[int]]) -> tuple[Launch, ...]:
    layouts = [layout_of(name, tensor) for name, tensor in tensors().items()]
    planner = BackwardPlanner(lowered(load(text)), BackwardConfig())
    return planner.plan(PROBLEM, "cuda:90", layouts, {"q_offset": 0}, 1.0, shapes)


# ------------------------------------------------------------------------------------- launching


class Driver:
    """Stands in for Triton's driver: a tensor map is what it was made of."""

    def __init__(self) -> None:
        self.made = 0
        self.utils = SimpleNamespace(fill_tma_descriptor=self.fill)

    def fill(self, *arguments: Any) -> Any:
        self.made += 1
        *others, sizes, strides, padding = arguments
        return (*others, tuple(sizes), tuple(strides), padding)


class Loaded:
    """A compiled kernel as if it were loaded: what would go to the driver is noted."""

    def __init__(self, kernel: Any, noted: list[tuple[Any, ...]]) -> None:
        def note(*arguments: Any) -> None:
            noted.append(arguments)

        meta = kernel.metadata.tensordesc_meta
        wrapped = _launch.nvidia_driver.wrap_handle_tensordesc(note, kernel.src.signature, meta)
        early = kernel.metadata.launch_pdl
        launcher = SimpleNamespace(launch=wrapped, launch_cooperative_grid=False, launch_pdl=early)
        self.metadata, self.src, self.run = kernel.metadata, kernel.src, launcher
        self.packed_metadata, self.function = kernel.packed_metadata, 1234

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def run(*arguments: Any, stream: int) -> None:
            early = self.run.launch_pdl
            options = (self.function, False, early, None, None, self.packed_metadata, None)
            self.run.launch(*grid, stream, *options, "before", "after", *arguments)

        return run


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(_launch.triton.runtime.driver, "_active", found)
    return found


@pytest.fixture
def hooks() -> Iterator[Any]:
    chain = _launch.triton.knobs.runtime.launch_enter_hook
    calls = list(chain.calls)
    yield chain
    chain.calls[:] = calls


def bound(planned: Launch, folder: Path) -> tuple[DirectLaunch, list[tuple[Any, ...]]]:
    """A launch by the short way, and what it gives to the driver."""
    noted: list[tuple[Any, ...]] = []
    kernel = Loaded(launch._compile(planned.source, "cuda:90", True, folder), noted)
    direct = launch.direct_launcher(kernel)
    assert direct is not None
    return DirectLaunch(planned, direct, TritonLaunch(planned, [], kernel)), noted


def operands() -> dict[str, torch.Tensor]:
    found = tensors()
    return {**found, "lse": torch.zeros(1, 2, 100), "table_doc": torch.zeros(7, dtype=torch.int32)}


def test_the_driver_is_given_what_triton_gives_it(
    driver: Driver, hooks: Any, tmp_path: Path
) -> None:
    (planned,) = forward_launches(PACKED, {"doc": (7,)})
    assert planned.described and planned.pointers and planned.rest
    direct, noted = bound(planned, tmp_path)
    given = operands()
    direct(given, 99)
    hooks.add(lambda _: None)  # somebody watches: Triton's own launcher does it
    direct(given, 99)
    short, by_triton = noted
    assert by_triton[10:13] == (None, "before", "after")
    assert short[10:13] == (None, None, None)  # nobody to call
    assert short[:10] == by_triton[:10] and short[13:] == by_triton[13:]
    assert short[:5] == (*planned.grid, 99, 1234)


def test_so_it_is_with_kernels_of_gluon(driver: Driver, hooks: Any, tmp_path: Path) -> None:
    given = {**tensors(128), "lse": torch.zeros(1, 2, 100)}
    layouts = [layout_of(name, given[name]) for name in ("query", "key", "value", "out")]
    config = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")
    planner = Planner(lowered(load("causal")), config)
    problem = Problem("bfloat16", 128, 128)
    (planned,) = planner.plan(problem, "cuda:90", layouts, {"q_offset": 0}, 1.0)
    direct, noted = bound(planned, tmp_path)
    direct(given, 99)
    hooks.add(lambda _: None)
    direct(given, 99)
    short, by_triton = noted
    assert planned.described and planned.source.config.emitter == "gluon"
    assert short[:10] == by_triton[:10] and short[13:] == by_triton[13:]


@pytest.mark.parametrize("long", [False, True])
def test_a_repair_starts_early_in_graphs_and_after_long_kernels(
    long: bool, driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    heads = 300 if long else 2
    given = {
        name: torch.zeros(1, 1, 100, 64, dtype=torch.bfloat16).expand(1, heads, 100, 64)
        for name in ("query", "key", "value", "out")
    }
    planner = Planner(lowered(load("causal")), KernelConfig(64, 64, 4, 2))
    problem = Problem("bfloat16", 64, 64, isolates=True)
    layouts = [layout_of(name, tensor) for name, tensor in given.items()]
    first, repair = planner.plan(problem, "cuda:90", layouts, {"q_offset": 0}, 1.0)
    assert not first.follows_long and repair.follows_long is long
    given |= {"lse": torch.zeros(1, heads, 100), "spoiled": torch.zeros(600, dtype=torch.int32)}
    for planned, wanted in ((first, [False, False]), (repair, [long, True])):
        direct, noted = bound(planned, tmp_path)
        for capturing in (False, True):
            monkeypatch.setattr(bound_launch, "_capturing", lambda now=capturing: now)
            direct(given, 99)
        assert [arguments[6] for arguments in noted] == wanted
        assert [arguments[4] for arguments in noted] == [1234, 1234]  # the function is before it


def test_tensor_maps_are_made_once_for_each_address(driver: Driver, tmp_path: Path) -> None:
    (planned,) = forward_launches("causal")
    direct, noted = bound(planned, tmp_path)
    first, second = operands(), operands()
    for given in (first, first, second, first):
        direct(given, 0)
    count = len(planned.described)
    assert driver.made == 2 * count
    place = 13
    for one in planned.described:
        addresses = [arguments[place][0] for arguments in noted]
        wanted = [given[one.tensor].data_ptr() for given in (first, first, second, first)]
        assert addresses == wanted
        place += 1 + len(one.sizes) + len(one.strides)
    many = [torch.zeros(1, 2, 100, 64, dtype=torch.bfloat16) for _ in range(100)]
    for key in many:
        direct({**first, "key": key}, 0)
    assert [arguments[13:] for arguments in noted[4:]] != [noted[0][13:]] * 100
    assert all(len(maps) <= 64 for _, maps in direct._maps)


def test_another_triton_launches_by_its_own_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch.triton, "__version__", "3.5.1")
    assert launch.direct_launcher(object()) is None


@pytest.mark.parametrize("which", ["global_scratch_size", "profile_scratch_size"])
def test_kernels_with_scratch_memory_are_triton_s(which: str) -> None:
    sizes = {"global_scratch_size": 0, "profile_scratch_size": 0, which: 128}

    class Kernel:
        run = None
        metadata = SimpleNamespace(**sizes)

    assert launch.direct_launcher(Kernel()) is None


# ---------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("plan", [forward_launches, backward_launches])
def test_tables_of_other_shapes_change_sizes_alone(case: str, plan: Any) -> None:
    text, shapes = TABLES[case]
    others = {name: (size + 30,) for name, (size,) in shapes.items()}
    tables = {f"table_{name}": torch.zeros(shape) for name, shape in others.items()}
    known, anew = plan(text, shapes), plan(text, others)
    assert known != anew
    for one, other in zip(known, anew, strict=True):
        assert serves(one, others)
        assert replace(one, rest=other.rest) == other
        assert bound_launch._rest(one, tables) == list(other.rest)


def test_the_driver_is_given_the_sizes_of_each_call(driver: Driver, tmp_path: Path) -> None:
    (planned,) = forward_launches(PACKED, {"doc": (7,)})
    direct, noted = bound(planned, tmp_path)
    given = operands()
    for count in (6, 1, 900, 6):
        direct({**given, "table_doc": torch.zeros(count + 1, dtype=torch.int32)}, 0)
    place = [p.name for p in planned.source.parameters].index("table_doc_count")
    places = len(planned.source.parameters) - place
    assert [arguments[-places] for arguments in noted] == [6, 1, 900, 6]


SUMMED = "pattern p(slashes: bool[head, *]): causal and slashes[head, q - k]"


@pytest.mark.parametrize("plan", [forward_launches, backward_launches])
def test_counts_of_a_table_are_planned_for_its_shape(plan: Any) -> None:
    launches = plan(SUMMED, {"slashes": (2, 100)})
    assert any(one.shaped_by for one in launches)
    assert all(serves(one, {"slashes": (2, 100)}) for one in launches)
    assert not all(serves(one, {"slashes": (2, 101)}) for one in launches)


def test_tables_that_kernels_cannot_read_are_refused() -> None:
    (planned,) = forward_launches(PACKED, {"doc": (7,)})
    with pytest.raises(ConfigError, match="the table doc, which was not given"):
        serves(planned, {})
    with pytest.raises(ConfigError, match="doc has 2 axes, the pattern reads 1"):
        serves(planned, {"doc": (7, 2)})


# ---------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 2, 0, 5), (0,), (3, 1, 1, 7)])
def test_room_is_contiguous(shape: tuple[int, ...]) -> None:
    made = Room(shape, torch.float16, torch.device("cpu"))()
    like = torch.empty(shape, dtype=torch.float16)
    assert made.shape == like.shape and made.dtype == like.dtype
    assert made.stride() == like.stride() and made.is_contiguous()


def test_room_is_filled_where_torch_fills_it() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert Room((50, 3), torch.float32, torch.device("cpu"))().isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_oldest_is_forgotten_first() -> None:
    kept: Kept[int] = Kept(3)
    for number in range(5):
        assert kept.keep((number,), number) == number
    assert list(kept.values()) == [2, 3, 4]
    assert kept.get((0,)) is None


def test_all_is_forgotten_when_something_was_tuned() -> None:
    first, second = Kept[int](), Kept[int]()
    first.keep((1,), 1)
    second.keep((2,), 2)
    gone = Kept[int]()
    gone.keep((3,), 3)
    del gone
    forget_all()
    assert not first and not second


# ------------------------------------------------------------------------------------- signatures


def test_signatures_tell_apart_what_plans_depend_on() -> None:
    like = torch.zeros(2, 4, 32, 16)
    whole = torch.zeros(2 * 4 * 32 * 16 + 8)
    shifted = whole[1 : like.numel() + 1].view(like.shape)
    others = [
        like[:1],
        like.half(),
        like.transpose(1, 2).contiguous().transpose(1, 2),
        shifted,
        like.to("meta"),
    ]
    same = inputs_signature(like, like.clone(), like.clone())
    assert same == inputs_signature(like, like, like)
    assert same == layout_signature((like, like, like))
    for other in others:
        for place in range(3):
            given = [like, like, like]
            given[place] = other
            assert inputs_signature(*given) != same
            assert inputs_signature(*given) == layout_signature(given)
    assert layout_signature((like, None)) != layout_signature((None, like))
