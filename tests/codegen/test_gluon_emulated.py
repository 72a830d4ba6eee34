"""Gluon kernels run on the CPU by `gluon_emulator`, against float64: warps that load and warps that
compute visit the same tiles, wait for each other, and leave no row out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from patterncc.codegen.gpu.config import KernelConfig, Peaks
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.launches import Launch
from patterncc.codegen.gpu.steps import layout_of, problem_of, shapes_of, term_operands, term_values
from patterncc.codegen.score.reference import dense_attention
from patterncc.codegen.score.values import NO_VALUES, ScoreValues
from patterncc.dsl import load
from patterncc.dsl.score.terms import PLAIN, ScoreTerms
from tests.codegen.attention import Errors, allowed_pairs, errors, expected, lowered, poisoned
from tests.codegen.gluon_emulator import DENSE_TEXTS, Deadlock, run_launch
from tests.codegen.interpreter import Call
from tests.codegen.score_calls import ScoreCall

WIDE = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")
SMALL = KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon")
LONG = KernelConfig(64, 128, 4, 2, "descriptor", emitter="gluon")
CONFIGS = {"128x128": WIDE, "64x64": SMALL, "64x128": LONG}
LENGTHS = ((300, 300, 0), (77, 391, 314), (391, 77, -314), (1, 400, 399))
SIZES = {"heads": 4, "kv_heads": 2, "layers": 4}
DOCUMENTS = (0, 50, 51, 140, 150)

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _tensors(q_len: int, kv_len: int, head_dim: int = 64) -> Tensors:
    like = torch.empty(0, dtype=torch.bfloat16)
    torch.manual_seed(0)
    query, key, value = (
        poisoned((1, heads, length, head_dim), like)
        for heads, length in ((4, q_len), (2, kv_len), (2, kv_len))
    )
    return query, key, value


def _launches(
    text: str,
    config: KernelConfig,
    tensors: Tensors,
    env: Mapping[str, int],
    tables: Mapping[str, torch.Tensor],
    terms: ScoreTerms = PLAIN,
    values: ScoreValues = NO_VALUES,
) -> tuple[tuple[Launch, ...], dict[str, torch.Tensor]]:
    """A call's launches, and memory for what they read and write."""
    query, key, value = tensors
    operands = {"query": query, "key": key, "value": value}
    operands["out"] = torch.full_like(query, float("nan"))
    planner = Planner(lowered(load(text), SIZES), config)
    launches = planner.plan(
        problem_of(*tensors, terms, isolates=False),
        "cuda:90",
        [layout_of(name, tensor) for name, tensor in operands.items()],
        env,
        query.shape[3] ** -0.5,
        shapes_of(tables),
        term_values(terms, values, query.device),
    )
    operands |= term_operands(values)
    operands["lse"] = torch.full(query.shape[:3], float("nan"))
    for name, table in tables.items():
        operands[f"table_{name}"] = table
    for launch in launches:
        for buffer in launch.buffers:
            operands[buffer.name] = torch.full(buffer.shape, float("nan"))
    return launches, operands


def _errors(
    text: str,
    config: KernelConfig,
    tensors: Tensors,
    env: Mapping[str, int],
    tables: Mapping[str, torch.Tensor] | None = None,
) -> Errors:
    tables = tables or {}
    launches, operands = _launches(text, config, tensors, env, tables)
    for launch in launches:
        run_launch(launch, operands)
    pattern = load(text)
    lists = {name: table.tolist() for name, table in tables.items()}
    wanted = expected(pattern, *tensors, env, tensors[0].shape[3] ** -0.5, lists or None)
    return errors((operands["out"], operands["lse"]), wanted)


def _right(found: Errors) -> bool:
    return found.out < 3e-2 and found.lse < 3e-3 and found.empty


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("text", DENSE_TEXTS)
def test_patterns(text: str, shape: str) -> None:
    config = CONFIGS[shape]
    if text in ("causal", "full"):
        config = replace(config, order="reverse")
    for q_len, kv_len, offset in LENGTHS:
        env = {"q_offset": offset, "layer": 2}
        found = _errors(text, config, _tensors(q_len, kv_len), env)
        assert _right(found), (q_len, kv_len, offset, found)


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("peaks", ["each", "kept"])
def test_lines_of_a_raster(peaks: Peaks, shape: str) -> None:
    """Loops around loops, as a box of tiles under one counter; the call may end in a line."""
    text = "sliding_tile(tile = 128, depth = 2, rows = 2, columns = 3, text = 70)"
    numbers = {"depth": 2, "depth_window": 1, "row_window": 1, "column_window": 3, "text": 70}
    config = replace(CONFIGS[shape], peaks=peaks)
    for q_len, kv_len in ((300, 700), (1606, 1606)):
        env = {"q_offset": 0, "layer": 0, **numbers}
        found = _errors(text, config, _tensors(q_len, kv_len), env)
        assert _right(found), (q_len, kv_len, found)


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("text", ["dilated(20, 5)", "window(100) or dilated(40, 8)"])
def test_classes_and_passes(text: str, shape: str) -> None:
    for q_len, kv_len, offset in ((1100, 1101, 1), (70, 1133, 1063)):
        found = _errors(text, CONFIGS[shape], _tensors(q_len, kv_len), {"q_offset": offset})
        assert _right(found), (q_len, kv_len, offset, found)


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize(
    ("text", "tables"),
    [
        (
            "pattern p(doc: segments): causal and doc[q] == doc[k]",
            {"doc": torch.tensor(DOCUMENTS, dtype=torch.int32)},
        ),
        (
            "pattern p(w: int[head]): window(w[head])",
            {"w": torch.tensor([10, 300, 77, 1], dtype=torch.int32)},
        ),
    ],
)
def test_tables(text: str, tables: dict[str, torch.Tensor], shape: str) -> None:
    found = _errors(text, CONFIGS[shape], _tensors(150, 150), {"q_offset": 0}, tables)
    assert _right(found), found


INTRICATE = (
    "sinklora(4, 64)",
    "s2_wrapped",
    "deepspeed_fixed(64, 2)",
    "minference_dilated_window(30, 100)",
)


@pytest.mark.parametrize("shape", ["64x64", "64x128"])
@pytest.mark.parametrize("text", INTRICATE)
def test_intricate_masks_that_keep_the_peak(text: str, shape: str) -> None:
    """Masks beyond limits, in the tiles that they are taken for."""
    config = replace(CONFIGS[shape], peaks="kept")
    for q_len, kv_len, offset in ((190, 900, 710), (77, 900, 823)):
        found = _errors(text, config, _tensors(q_len, kv_len), {"q_offset": offset, "layer": 2})
        assert _right(found), (q_len, kv_len, offset, found)


@pytest.mark.parametrize("shape", ["64x64", "64x128"])
def test_a_tree_of_drafts_keeps_the_peak(shape: str) -> None:
    """A mask that looks up rows and keys in a table of truth values."""
    torch.manual_seed(1)
    tables = {"a": (torch.rand(2, 70, 70) < 0.3) | torch.eye(70, dtype=torch.bool)}
    config = replace(CONFIGS[shape], peaks="kept")
    text = "pattern p(a: bool[batch, *, *]): tree(a, 70)"
    found = _errors(text, config, _tensors(190, 500), {"q_offset": 310}, tables)
    assert _right(found), found


def test_wide_heads() -> None:
    for config in (WIDE, SMALL):
        assert _right(_errors("causal", config, _tensors(200, 200, 128), {"q_offset": 0}))


# ------------------------------------------------------------------------------------ score terms


def _scored(
    text: str,
    lengths: tuple[int, int],
    score: str = "score",
    sink: str | None = None,
    **numbers: float,
) -> ScoreCall:
    """A call with score terms; `slope` and `sinks` are tables by head."""
    call = Call(text, *lengths, offset=lengths[1] - lengths[0], heads=(4, 2), head_dim=64)
    tables = {name: (4,) for name in ("slope", "sinks") if name in f"{score} {sink}"}
    return ScoreCall(call, score, sink, numbers, tables)


SCORES = (
    _scored("causal", (300, 300), "30 * tanh(score / 30)"),
    _scored("full", (77, 391), "score + slope[head] * (k - q)"),
    _scored("streaming(5, 70)", (300, 300), sink="sinks[head]"),
    _scored("around(50)", (77, 391), "score - abs(q - k) / 8", "log(2 + q / 4)"),
    _scored("k > q", (300, 310), "cap * tanh(score / cap)", "sinks[head]", cap=5.0),
    _scored("window(100) or dilated(40, 8)", (1100, 1101), "score - (q - k) / 64", "b", b=0.5),
    _scored("dilated(20, 5)", (1100, 1101), "score + sqrt(abs(k - q))", "0 - 30"),
)
"""Score terms that Gluon knows."""


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("case", SCORES, ids=[f"{c.call.text}, {c.score}" for c in SCORES])
def test_score_terms(case: ScoreCall, shape: str) -> None:
    call, values = case.call, case.values()
    tensors, env = _tensors(call.q_len, call.kv_len), {"q_offset": call.offset or 0}
    launches, operands = _launches(call.text, CONFIGS[shape], tensors, env, {}, case.terms, values)
    for launch in launches:
        run_launch(launch, operands)
    sizes = {"q_len": call.q_len, "kv_len": call.kv_len, "heads": 4, "kv_heads": 2}
    wanted = dense_attention(
        *tensors,
        allowed_pairs(load(call.text), tensors[0], tensors[1], env),
        64**-0.5,
        case.terms,
        env={**env, **sizes},
        numbers=values.numbers,
        tables=values.tables,
    )
    found = errors((operands["out"], operands["lse"]), wanted)
    assert found.out < 3e-2, found
    assert found.lse < 3e-3, found


# ------------------------------------------------------------------------------------ it would tell


def _changed(change: Callable[[str], str], config: KernelConfig = WIDE) -> Errors:
    """The errors of `causal` where the kernel's text is changed."""
    tensors = _tensors(700, 700)
    launches, operands = _launches("causal", config, tensors, {"q_offset": 0}, {})
    (launch,) = launches
    text = change(launch.source.text)
    assert text != launch.source.text
    run_launch(replace(launch, source=replace(launch.source, text=text)), operands)
    wanted = expected(load("causal"), *tensors, {"q_offset": 0}, 64**-0.5)
    return errors((operands["out"], operands["lse"]), wanted)


def test_a_missing_arrival_is_a_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.codegen.gluon_emulator._PATIENCE", 0.2)
    with pytest.raises(Deadlock):
        _changed(lambda text: text.replace("arrive(value_free.index(last))", "pass"))


def test_a_tile_that_is_given_back_early_is_seen() -> None:
    """Values that are freed as soon as they are asked for are overwritten before they are read."""
    asked = r"( +)(out = multiply\(rounded, value_tiles.index\(last\).*\n)"

    def freed_early(text: str) -> str:
        text = re.sub(r" +arrive\(value_free.index\(last\)\)\n", "", text)
        wait = "__import__('time').sleep(0.02)"
        return re.sub(asked, rf"\1\2\1arrive(value_free.index(last))\n\1{wait}\n", text)

    assert not _right(_changed(freed_early, LONG))


def test_a_product_that_is_read_early_is_an_error() -> None:
    with pytest.raises(AssertionError, match="may still run"):
        _changed(lambda text: text.replace("scores = finish(1, ", "scores = finish(2, "))
