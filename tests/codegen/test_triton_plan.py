"""Configs, layouts and plans: what is chosen, what is refused, and what a kernel is given."""

from __future__ import annotations

import dataclasses

import pytest

from patterncc.codegen.config import (
    INTERPRETER,
    KernelConfig,
    check_config,
    default_config,
    shared_bytes,
    shared_limit,
)
from patterncc.codegen.head_dim import parts
from patterncc.codegen.layout import Layout
from patterncc.codegen.plan import Planner
from patterncc.codegen.problem import DType, Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError, UnsupportedError
from tests.codegen.attention import lowered

TARGETS = ("cuda:80", "cuda:86", "cuda:90", "cuda:100", "cuda:120", "hip:gfx942", INTERPRETER)
DTYPES: tuple[DType, ...] = ("float16", "bfloat16", "float32")
BFLOAT16 = Problem("bfloat16", 64, 64)


# ------------------------------------------------------------------------------------ head dims


@pytest.mark.parametrize(
    ("head_dim", "widths"),
    [
        (1, [16]),
        (16, [16]),
        (64, [64]),
        (72, [64, 16]),
        (80, [64, 16]),
        (96, [64, 32]),
        (100, [64, 32, 16]),
        (192, [128, 64]),
        (256, [256]),
    ],
)
def test_parts(head_dim: int, widths: list[int]) -> None:
    cut = parts(head_dim)
    assert [part.width for part in cut] == widths
    assert sum(part.size for part in cut) == head_dim
    assert [part.start for part in cut] == [sum(widths[:n]) for n in range(len(widths))]
    assert not any(part.padded for part in cut[:-1])


def test_parts_of_bounded_width() -> None:
    assert [part.width for part in parts(112, 32)] == [32, 32, 32, 16]


@pytest.mark.parametrize("head_dim", [0, 257, 512])
def test_no_parts(head_dim: int) -> None:
    with pytest.raises(UnsupportedError, match=f"head dimension of {head_dim} "):
        parts(head_dim)


# ------------------------------------------------------------------------------------ configs


@pytest.mark.parametrize("target", TARGETS)
def test_defaults_are_legal(target: str) -> None:
    for dtype in DTYPES:
        for head_dim in range(8, 257, 8):
            for value_head_dim in (16, head_dim, 256):
                for descriptors in (True, False):
                    problem = Problem(dtype, head_dim, value_head_dim)
                    config = default_config(problem, target, descriptors=descriptors)
                    check_config(config, problem, target)
                    assert descriptors or config.load == "pointer"


def test_default_starts_with_the_longest_tiles() -> None:
    for text, order in (("causal", "reverse"), ("window", "forward"), ("full", "forward")):
        program = lowered(load(text))(128, 128)[0]
        assert default_config(BFLOAT16, "cuda:90", program).order == order


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_q": 48}, "block_q=48"),
        ({"block_k": 8}, "block_k=8"),
        ({"num_warps": 3}, "num_warps=3"),
        ({"num_stages": 0}, "num_stages=0"),
        ({"order": "random"}, "order='random'"),
        ({"max_registers": 256}, "max_registers=256"),
        ({"num_stages": 8, "block_k": 256}, "shared memory"),
    ],
)
def test_illegal_configs(change: dict[str, object], message: str) -> None:
    config = dataclasses.replace(KernelConfig(), **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        check_config(config, BFLOAT16, "cuda:90")


@pytest.mark.parametrize("target", ["cuda:80", "cuda:89", "hip:gfx942"])
def test_descriptors_need_their_hardware(target: str) -> None:
    with pytest.raises(ConfigError, match="load='descriptor'"):
        check_config(KernelConfig(load="descriptor"), BFLOAT16, target)


def test_shared_memory() -> None:
    config = KernelConfig(128, 128, 8, 3, "descriptor")
    assert shared_bytes(config, Problem("bfloat16", 128, 128)) == 2 * (128 + 6 * 128) * 128
    assert shared_limit("cuda:90") == 232448
    assert shared_limit("hip:gfx942") is None


# ------------------------------------------------------------------------------------ layouts


def _layout(**change: object) -> Layout:
    plain = Layout("key", 4096, (2, 4, 100, 64), (25600, 6400, 64, 1), 2)
    return dataclasses.replace(plain, **change)  # type: ignore[arg-type]


def test_plain_layout() -> None:
    assert _layout().aligned
    assert _layout().descriptor_obstacle() is None
    assert _layout().descriptor_strides == [25600, 6400, 64, 1]


@pytest.mark.parametrize(
    ("change", "obstacle", "aligned"),
    [
        ({"address": 4098}, "address", False),
        ({"strides": (25600, 6404, 64, 1)}, "head stride", False),
        ({"strides": (25600, 6400, 65, 1)}, "row stride", False),
        ({"strides": (0, 6400, 64, 1)}, "batch stride", True),  # broadcast
        ({"strides": (25600, 2**39, 64, 1)}, "range", True),
    ],
)
def test_obstacles(change: dict[str, object], obstacle: str, aligned: bool) -> None:
    layout = _layout(**change)
    assert obstacle in (layout.descriptor_obstacle() or "")
    assert layout.aligned == aligned


def test_strides_of_single_entries_do_not_matter() -> None:
    layout = _layout(sizes=(1, 1, 100, 60), strides=(7, 3, 64, 1))
    assert layout.aligned
    assert layout.descriptor_obstacle() is None
    assert layout.descriptor_strides == [64, 64, 64, 1]


# ------------------------------------------------------------------------------------ plans


def _layouts(q_len: int = 300, kv_len: int = 300, address: int = 4096) -> list[Layout]:
    def tensor(name: str, heads: int, length: int, address: int = 4096) -> Layout:
        strides = (heads * length * 64, length * 64, 64, 1)
        return Layout(name, address, (2, heads, length, 64), strides, 2)

    return [
        tensor("query", 8, q_len, address),
        tensor("key", 2, kv_len),
        tensor("value", 2, kv_len),
        tensor("out", 8, q_len),
    ]


PROBLEM = Problem("bfloat16", 64, 64, 4)


def test_plan() -> None:
    planner = Planner(lowered(load("streaming")), KernelConfig(128, 64, 4, 2, "descriptor"))
    env = {"q_offset": 0, "sinks": 4, "window": 100}
    launch = planner.plan(PROBLEM, "cuda:90", _layouts(), env, 0.125)
    assert launch.grid == (3, 8, 2)
    assert launch.aligned
    assert [(which, box) for which, _, _, box in launch.described] == [
        (0, [1, 1, 128, 64]),
        (1, [1, 1, 64, 64]),
        (2, [1, 1, 64, 64]),
    ]
    names = [p.name for p in launch.source.parameters if not p.box and not p.type.startswith("*")]
    given = dict(zip(names, launch.rest, strict=True))
    assert given["scale"] == pytest.approx(0.125 * 1.4426950408889634)
    assert (given["q_len"], given["kv_len"], given["q_offset"]) == (300, 300, 0)
    assert (given["number_sinks"], given["number_window"]) == (4, 100)
    assert given["out_stride_head"] == 300 * 64


def test_rows_past_the_keys_get_the_general_program() -> None:
    planner = Planner(lowered(load("causal")))
    inside = planner.source(PROBLEM, "cuda:90", {"q_offset": 5, "q_len": 5, "kv_len": 10})
    beyond = planner.source(PROBLEM, "cuda:90", {"q_offset": 6, "q_len": 5, "kv_len": 10})
    before = planner.source(PROBLEM, "cuda:90", {"q_offset": -1, "q_len": 5, "kv_len": 10})
    assert inside.digest != beyond.digest
    assert before.digest == beyond.digest


def test_pointers_only_where_descriptors_are_impossible() -> None:
    planner = Planner(lowered(load("causal")))
    env = {"q_offset": 0}
    even = planner.plan(PROBLEM, "cuda:90", _layouts(), env, 1.0)
    odd = planner.plan(PROBLEM, "cuda:90", _layouts(address=4098), env, 1.0)
    older = planner.plan(PROBLEM, "cuda:80", _layouts(), env, 1.0)
    assert even.source.config.load == "descriptor"
    assert odd.source.config.load == older.source.config.load == "pointer"
    assert (odd.aligned, older.aligned) == (False, True)
    asked = Planner(lowered(load("causal")), KernelConfig(load="descriptor", num_stages=2))
    with pytest.raises(ConfigError, match="address of query is no multiple of 16"):
        asked.plan(PROBLEM, "cuda:90", _layouts(address=4098), env, 1.0)


def test_limits() -> None:
    planner = Planner(lowered(load("streaming")))
    env = {"q_offset": 0, "sinks": 4, "window": 2**30 + 1}
    with pytest.raises(UnsupportedError, match="window is 1073741825"):
        planner.plan(PROBLEM, "cuda:90", _layouts(), env, 1.0)
    with pytest.raises(UnsupportedError, match="q_offset"):
        planner.plan(PROBLEM, "cuda:90", _layouts(), env | {"window": 5, "q_offset": 2**30}, 1.0)
    many = [dataclasses.replace(layout, sizes=(70000, *layout.sizes[1:])) for layout in _layouts()]
    with pytest.raises(UnsupportedError, match="70000 batch entries"):
        planner.plan(PROBLEM, "cuda:90", many, env | {"window": 5}, 1.0)


def test_missing_number() -> None:
    planner = Planner(lowered(load("streaming")))
    with pytest.raises(ConfigError, match="reads sinks, which the call does not give"):
        planner.plan(PROBLEM, "cuda:90", _layouts(), {"q_offset": 0, "window": 5}, 1.0)


def test_float64_is_refused() -> None:
    planner = Planner(lowered(load("causal")))
    with pytest.raises(UnsupportedError, match="float64"):
        planner.source(
            Problem("float64", 64, 64), "cuda:80", {"q_offset": 0, "q_len": 1, "kv_len": 1}
        )
