"""Plans of backward calls: what is launched, with what, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from patterncc.codegen.gpu.backward import Backward
from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.backward_plan import BackwardPlanner
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.launches import Launch
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.ir import Passes
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import DType, Problem
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl import load
from patterncc.dsl.errors import ArgumentError, ConfigError, UnsupportedError
from tests.codegen.attention import lowered

BY_DESCRIPTOR = BackwardConfig(grad_query=KernelConfig(64, 64, 4, 2, "descriptor"))
ROWS = ("query", "grad_out", "out")


def _layouts(length: int = 300, itemsize: int = 2, heads: int = 8) -> dict[str, Layout]:
    def tensor(name: str) -> Layout:
        count = heads if name in ROWS else 2
        strides = (count * length * 64, length * 64, 64, 1)
        return Layout(name, 4096, (2, count, length, 64), strides, itemsize)

    return {name: tensor(name) for name in ("query", "grad_out", "key", "value", "out")}


def _query_launches(
    text: str = "causal",
    layouts: dict[str, Layout] | None = None,
    config: BackwardConfig | None = None,
    target: str = "cuda:90",
    scale: float = 1.0,
    dtype: DType = "bfloat16",
) -> list[Launch]:
    planner = BackwardPlanner(lowered(load(text)), config or BackwardConfig())
    given = list((layouts or _layouts()).values())
    problem = Problem(dtype, 64, 64, 4)
    env = {"q_offset": 0}
    launches = planner.plan(problem, target, given, env, scale, needs_key_value=False)
    return list(launches)


def test_delta_comes_first() -> None:
    delta, kernel = _query_launches(scale=-0.5)
    assert (delta.source.name, kernel.source.name) == ("delta", "grad_query")
    assert delta.grid == (10, 8, 2)
    assert delta.pointers == ("grad_out", "out", "delta")
    assert kernel.grid == (5, 8, 2)
    assert [view.tensor for view in kernel.described] == ["query", "grad_out", "key", "value"]
    assert kernel.pointers == ("lse", "delta", "grad_query")
    assert not kernel.buffers
    names = [p.name for p in kernel.source.parameters if not p.box and not p.type.startswith("*")]
    given = dict(zip(names, kernel.rest, strict=True))
    assert given["scale"] == -0.5
    assert given["score_scale"] == pytest.approx(-0.5 * 1.4426950408889634)


def test_only_what_is_asked_for() -> None:
    planner = BackwardPlanner(lowered(load("causal")), BackwardConfig())
    given = list(_layouts().values())
    env = {"q_offset": 0}

    def names(query: bool, key_value: bool) -> list[str]:
        launches = planner.plan(
            Problem("bfloat16", 64, 64, 4),
            "cuda:90",
            given,
            env,
            1.0,
            {},
            needs_query=query,
            needs_key_value=key_value,
        )
        return [launch.source.name for launch in launches]

    assert names(True, False) == ["delta", "grad_query"]
    assert "grad_query" not in names(False, True)
    assert names(True, True)[:2] == ["delta", "grad_query"]
    assert len(names(True, True)) > 2


def test_gradient_of_the_lse_is_not_promised_to_be_aligned() -> None:
    """Its strides may be anything; those of the other tensors decide which variant runs."""
    layouts = _layouts()
    layouts["grad_lse"] = Layout("grad_lse", 4100, (2, 8, 300, 1), (2400, 1, 8, 2400), 4)
    delta, kernel = _query_launches(layouts=layouts)
    assert delta.aligned
    assert kernel.aligned
    assert "grad_lse" in delta.pointers
    names = [p.name for p in delta.source.parameters if not p.type.startswith("*")]
    given = dict(zip(names, delta.rest, strict=True))
    assert [given[f"grad_lse_stride_{axis}"] for axis in ("batch", "head", "row")] == [2400, 1, 8]


def test_an_expanded_gradient_goes_by_pointers() -> None:
    layouts = _layouts()
    layouts["grad_out"] = replace(layouts["grad_out"], strides=(0, 0, 0, 1))
    delta, kernel = _query_launches(layouts=layouts)
    assert kernel.source.config.load == "pointer"
    assert delta.aligned
    with pytest.raises(ConfigError, match="batch stride of grad_out"):
        _query_launches(layouts=layouts, config=BY_DESCRIPTOR)


def test_an_odd_address_takes_the_variant_for_it() -> None:
    layouts = _layouts()
    layouts["out"] = replace(layouts["out"], address=4098)  # only delta reads it
    delta, kernel = _query_launches(layouts=layouts)
    assert (delta.aligned, kernel.aligned) == (False, True)
    layouts = _layouts()
    layouts["query"] = replace(layouts["query"], address=4098)
    delta, kernel = _query_launches(layouts=layouts)
    assert (delta.aligned, kernel.aligned) == (True, False)
    assert kernel.source.config.load == "pointer"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_passes_hand_on_their_sums(dtype: DType) -> None:
    def lower_both(block_q: int, block_k: int) -> tuple[Passes]:
        near = lower(load("window(30)"), block_q, block_k)
        far = load("dilated(40, 8) and q - k >= 30")
        return ((near, lower(far, block_q, block_k, tiling=residue_tiling(8)), near),)

    planner = BackwardPlanner(lower_both, BackwardConfig())
    itemsize = 4 if dtype == "float32" else 2
    layouts = list(_layouts(itemsize=itemsize).values())
    problem = Problem(dtype, 64, 64, 4)
    launches = planner.plan(
        problem, "cuda:90", layouts, {"q_offset": 0}, 1.0, needs_key_value=False
    )
    _, first, middle, last = launches
    state = ("grad_query_state", (2, 8, 300, 64), "float32")
    assert first.buffers == ((state,) if dtype == "bfloat16" else ())
    assert not middle.buffers
    assert first.pointers[-1] == middle.pointers[-1] == last.pointers[-1] == "grad_query_state"
    assert "grad_query" in last.pointers
    assert "grad_query" not in first.pointers
    assert "load(grad_query_state" not in first.source.text
    assert "store(grad_query_state" in middle.source.text
    assert "store(grad_query_state" not in last.source.text
    assert "* scale" in last.source.text
    assert "* scale" not in middle.source.text


def test_limits() -> None:
    with pytest.raises(UnsupportedError, match="70000 heads"):
        _query_launches(layouts=_layouts(heads=70000))
    with pytest.raises(UnsupportedError, match="float64"):
        _query_launches(dtype="float64", target="cuda:80")
    with pytest.raises(ConfigError, match="shared memory"):
        _query_launches(config=BackwardConfig(KernelConfig(256, 256, 8, 3)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("grad_out", lambda t: t[:, :1]),
        ("grad_out", lambda t: t.double()),
        ("out", lambda t: t[..., :8]),
        ("lse", lambda t: t.half()),
        ("grad_lse", lambda t: t[None]),
        ("grad_lse", lambda t: t.to("meta")),
    ],
)
def test_tensors_that_do_not_fit_are_named(name: str, change: object) -> None:
    backward = Backward(lowered(load("causal")))
    tensors = {n: torch.zeros(1, 2, 8, 16) for n in ("query", "key", "value", "out", "grad_out")}
    tensors |= {n: torch.zeros(1, 2, 8) for n in ("lse", "grad_lse")}
    tensors[name] = change(tensors[name])  # type: ignore[operator]
    order = ("grad_out", "grad_lse", "query", "key", "value", "out", "lse")
    arguments: list[Any] = [tensors[which] for which in order]
    with pytest.raises(ArgumentError, match=rf"^{name} is .* it must be torch.float32 \[1, 2, 8"):
        backward(*arguments, env={"q_offset": 0}, scale=1.0)
