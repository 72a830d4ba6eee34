"""Configs, layouts and plans: what is chosen, what is refused, and what a kernel is given."""

from __future__ import annotations

import dataclasses

import pytest

from patterncc.autotune.job import Job
from patterncc.codegen.gpu.config import (
    INTERPRETER,
    KernelConfig,
    check_config,
    default_config,
    shared_bytes,
    shared_limit,
)
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.head_dim import parts
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.ir import Passes
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import DType, Problem
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl import load
from patterncc.dsl.build import all_of, compare, subtract
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import TRUE, Entry, K, Member, Q, Var, variables
from tests.codegen.attention import all_partial, lowered

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
        program = lowered(load(text))(128, 128)[0][0]
        assert default_config(BFLOAT16, "cuda:90", program).order == order


@pytest.mark.parametrize(
    ("text", "head_dim", "stages"),
    [("keep[q // 64, k // 64]", 128, 2), ("keep[q // 64, k // 64]", 64, 3), ("keep[3, k]", 128, 3)],
)
def test_stages_leave_room_for_two_programs(text: str, head_dim: int, stages: int) -> None:
    """A table that is read pair by pair takes shared memory of the multiprocessor."""
    program = lower(load(f"pattern p(keep: bool[*, *]): causal and {text}"), 64, 64)
    problem = Problem("bfloat16", head_dim, head_dim, 1)
    assert default_config(problem, "cuda:90", program).num_stages == stages


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
    (launch,) = planner.plan(PROBLEM, "cuda:90", _layouts(), env, 0.125)
    assert launch.grid == (3, 8, 2)
    assert launch.aligned
    assert [(name, box) for name, _, _, box in launch.described] == [
        ("query", [1, 1, 128, 64]),
        ("key", [1, 1, 64, 64]),
        ("value", [1, 1, 64, 64]),
    ]
    names = [p.name for p in launch.source.parameters if not p.box and not p.type.startswith("*")]
    given = dict(zip(names, launch.rest, strict=True))
    assert given["scale"] == pytest.approx(0.125 * 1.4426950408889634)
    assert (given["q_len"], given["kv_len"], given["q_offset"]) == (300, 300, 0)
    assert (given["number_sinks"], given["number_window"]) == (4, 100)
    assert given["out_stride_head"] == 300 * 64


def test_rows_past_the_keys_get_the_general_program() -> None:
    planner = Planner(lowered(load("causal")))

    def digest(q_offset: int) -> str:
        env = {"q_offset": q_offset}
        (launch,) = planner.plan(PROBLEM, "cuda:90", _layouts(5, 10), env, 1.0)
        return launch.source.digest

    assert digest(5) != digest(6)
    assert digest(-1) == digest(6)


def test_pointers_only_where_descriptors_are_impossible() -> None:
    planner = Planner(lowered(load("causal")))
    env = {"q_offset": 0}
    (even,) = planner.plan(PROBLEM, "cuda:90", _layouts(), env, 1.0)
    (odd,) = planner.plan(PROBLEM, "cuda:90", _layouts(address=4098), env, 1.0)
    (older,) = planner.plan(PROBLEM, "cuda:80", _layouts(), env, 1.0)
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
        planner.plan(Problem("float64", 64, 64), "cuda:80", _layouts(), {"q_offset": 0}, 1.0)


# ------------------------------------------------------------------------------------ classes


def _dilated(block_q: int, block_k: int) -> tuple[Passes, Passes]:
    pattern, tiling = load("dilated(40, 8)"), residue_tiling(8)
    special = lower(pattern, block_q, block_k, within=True, tiling=tiling)
    return (special,), (lower(pattern, block_q, block_k, tiling=tiling),)


def test_classes_of_rows() -> None:
    """301 rows: classes of 38 and 37, each a tile of 64 for every head and batch entry."""
    (launch,) = Planner(_dilated).plan(
        PROBLEM, "cuda:90", _layouts(301, 1111), {"q_offset": 810}, 1.0
    )
    assert launch.grid == (8, 8, 2)
    assert launch.source.config.load == "descriptor"
    sizes, strides = [2, 2, 139, 8, 64], [2 * 1111 * 64, 1111 * 64, 512, 64, 1]
    box = [1, 1, 64, 1, 64]
    assert list(launch.described) == [(name, sizes, strides, box) for name in ("key", "value")]
    assert launch.pointers == ("query", "out", "lse")
    names = [p.name for p in launch.source.parameters if not p.box and not p.type.startswith("*")]
    given = dict(zip(names, launch.rest, strict=True))
    assert (given["call_q_len"], given["call_kv_len"], given["call_q_offset"]) == (301, 1111, 810)


def test_assumptions_hold_in_every_class() -> None:
    planner = Planner(_dilated)

    def digest(q_offset: int) -> str:
        env = {"q_offset": q_offset}
        (launch,) = planner.plan(PROBLEM, "cuda:90", _layouts(20, 600), env, 1.0)
        return launch.source.digest

    assert digest(0) == digest(7) == digest(580)
    assert digest(-1) == digest(581) != digest(0)


def test_assumptions_hold_in_every_class_of_every_head() -> None:
    """In LongNet a head has positions of its own: a call tells each head's classes apart."""

    def alternatives(block_q: int, block_k: int) -> list[Passes]:
        jobs = [Job(text, PROBLEM, 2, 8, 2, 300, length) for length in (300, 200)]
        return [job.passes(block_q, block_k) for job in jobs]

    text = load("longnet(64, 4)").structure
    special, general = alternatives(64, 64)
    assert variables(special[0].tiling.k_class) == {"head"}
    assert (special[0].assume == TRUE, general[0].assume) == (False, TRUE)
    planner = Planner(alternatives)

    def digest(q_offset: int) -> str:
        env = {"q_offset": q_offset, "heads": 8, "kv_heads": 2}
        (launch,) = planner.plan(PROBLEM, "cuda:90", _layouts(20, 600), env, 1.0)
        return launch.source.digest

    assert digest(0) == digest(7) == digest(580)
    assert digest(-1) == digest(600) != digest(0)


def test_boxes_longer_than_a_class_are_pointers() -> None:
    planner, env = Planner(_dilated), {"q_offset": 0}
    (enough,) = planner.plan(PROBLEM, "cuda:90", _layouts(512, 512), env, 1.0)
    (less,) = planner.plan(PROBLEM, "cuda:90", _layouts(511, 511), env, 1.0)
    assert (enough.source.config.load, less.source.config.load) == ("descriptor", "pointer")
    asked = Planner(_dilated, KernelConfig(64, 64, 4, 2, "descriptor"))
    with pytest.raises(ConfigError, match="of 511 keys every 8th are 63, less than a tile of 64"):
        asked.plan(PROBLEM, "cuda:90", _layouts(511, 511), env, 1.0)


def test_passes_hand_on_their_state() -> None:
    def lower_both(block_q: int, block_k: int) -> tuple[Passes]:
        near = lower(load("window(30)"), block_q, block_k)
        far = lower(load("dilated(40, 8) and q - k >= 30"), block_q, block_k)
        return ((near, near, far),)

    first, middle, last = Planner(lower_both).plan(
        PROBLEM, "cuda:90", _layouts(), {"q_offset": 0}, 1.0
    )
    assert first.pointers[-2:] == middle.pointers[-2:] == ("lse", "state")
    assert "load(state_rows" not in first.source.text
    assert "load(state_rows" in middle.source.text
    assert "store(state_rows" in middle.source.text
    assert "store(state_rows" not in last.source.text
    assert "store(out_base" in last.source.text


def test_tables_of_a_call() -> None:
    mask = all_of(
        compare("<", subtract(Q, K), Entry("w", (Var("layer"), Var("head")))),
        Member("keep", (Var("kv_head"),)),
    )
    planner = Planner(all_partial(mask))
    env = {"q_offset": 0, "layer": 3}
    shapes = {"w": (5, 8), "keep": (2,), "unused": (7,)}
    (launch,) = planner.plan(PROBLEM, "cuda:90", _layouts(), env, 1.0, shapes)
    assert launch.pointers[-2:] == ("table_keep", "table_w")
    names = [p.name for p in launch.source.parameters if not p.box and not p.type.startswith("*")]
    given = dict(zip(names, launch.rest, strict=True))
    assert (given["table_w_size_0"], given["table_w_size_1"], given["table_keep_size_0"]) == (
        5,
        8,
        2,
    )
    with pytest.raises(ConfigError, match="reads the table w, which was not given"):
        planner.plan(PROBLEM, "cuda:90", _layouts(), env, 1.0, {"keep": (2,)})
    with pytest.raises(ConfigError, match="the table w has 1 axes, the pattern reads 2"):
        planner.plan(PROBLEM, "cuda:90", _layouts(), env, 1.0, {"keep": (2,), "w": (8,)})


def test_tables_beyond_32_bits() -> None:
    """What one tile looks up lies within 2^31 entries; heads before that may be any number."""
    text = "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 64, k // 64]"
    planner = Planner(lowered(load(text)), KernelConfig(64, 64, 4, 2))
    env = {"q_offset": 0}
    planner.plan(PROBLEM, "cuda:90", _layouts(), env, 1.0, {"keep": (64, 1 << 15, 1 << 15)})
    with pytest.raises(UnsupportedError, match="the table keep of"):
        planner.plan(PROBLEM, "cuda:90", _layouts(), env, 1.0, {"keep": (1, 1 << 17, 1 << 15)})


def test_lists_of_tiles_come_first() -> None:
    """Rows of 5 key tiles and one more; one list for all heads, for the table does not name any."""
    text = "pattern p(keep: bool[*, *]): causal and keep[q // 64, k // 64]"
    lists, forward = Planner(lowered(load(text)), KernelConfig(64, 64, 4, 2)).plan(
        PROBLEM, "cuda:90", _layouts(), {"q_offset": 0}, 1.0, {"keep": (5, 5)}
    )
    assert (lists.source.name, lists.grid, forward.grid) == ("list_tiles", (5, 1, 1), (5, 8, 2))
    assert lists.buffers == (("tiles", (5, 6), "int32"), ("tile_counts", (5, 2), "int32"))
    assert lists.pointers == ("tiles", "tile_counts", "table_keep")
    assert forward.pointers[-3:] == ("tiles", "tile_counts", "table_keep")
    for launch in (lists, forward):
        names = [p.name for p in launch.source.parameters if not p.type.startswith("*")]
        assert dict(zip(names, launch.rest, strict=True))["tile_capacity"] == 6
