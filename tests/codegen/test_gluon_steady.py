"""Gluon kernels whose full tiles keep the peak, run on the CPU by `gluon_emulator`: scores that
outgrow it, which rows are computed once more, and what that starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.steps import layout_of, problem_of, shapes_of
from patterncc.codegen.ir import Passes
from patterncc.codegen.score.reference import dense_attention
from patterncc.dsl import load
from patterncc.dsl.score.terms import PLAIN, ScoreTerms, load_terms
from tests.codegen.attention import Errors, allowed_pairs, errors, poisoned
from tests.codegen.gluon_emulator import run_launch

WIDE = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon", peaks="kept")
SMALL = KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon", peaks="kept")
LONG = KernelConfig(64, 128, 4, 2, "descriptor", emitter="gluon", peaks="kept")
CONFIGS = {"128x128": WIDE, "64x64": SMALL, "64x128": LONG}
SIZES = {"heads": 2, "kv_heads": 1, "layers": 4}

OUTGROWN = 29.0
MODERATE = 22.0
"""Their square is 8 times what scores grow by: 105 and 60; the range of float32 is 88."""

LATE = slice(420, 440)
"""Keys in none of the first full tiles of the last rows of 900."""

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _growing(q_len: int, kv_len: int, rows: slice, keys: slice, length: float) -> Tensors:
    """Query, key and value; the scores of some rows and keys are larger than others."""
    like = torch.empty(0, dtype=torch.bfloat16)
    torch.manual_seed(0)
    query = poisoned((1, 2, q_len, 64), like)
    key, value = (poisoned((1, 1, kv_len, 64), like) for _ in range(2))
    query[:, :, rows, 0] = length
    key[:, :, :, 0] = 0.0
    key[:, :, keys, 0] = length
    return query, key, value


def _never_again(text: str) -> str:
    """A kernel's text without the second computation."""
    return text.replace("if again > 0:", "if again < 0:")


def _result(
    text: str,
    config: KernelConfig,
    tensors: Tensors,
    change: Callable[[str], str] = str,
    terms: ScoreTerms = PLAIN,
    *,
    isolates: bool = False,
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """What kernels give for a call whose last row is that of the last key, and what they should."""
    query, key, value = tensors
    pattern, env = load(text), {"q_offset": key.shape[2] - query.shape[2]}

    def both(block_q: int, block_k: int) -> tuple[Passes, Passes]:
        within, anywhere = (
            lower_passes(pattern, block_q, block_k, sizes=SIZES, within=one, transposed=False)
            for one in (True, False)
        )
        return within, anywhere

    operands = {"query": query, "key": key, "value": value}
    operands["out"] = torch.full_like(query, float("nan"))
    layouts = [layout_of(name, tensor) for name, tensor in operands.items()]
    problem = problem_of(*tensors, terms, isolates=isolates)
    launches = Planner(both, config).plan(
        problem, "cuda:90", layouts, env, 64**-0.5, shapes_of({}), {}
    )
    operands["lse"] = torch.full(query.shape[:3], float("nan"))
    for launch in launches:
        for buffer in launch.buffers:
            operands[buffer.name] = torch.full(buffer.shape, float("nan"))
    for launch in launches:
        source = replace(launch.source, text=change(launch.source.text))
        run_launch(replace(launch, source=source), operands)
    allowed = allowed_pairs(pattern, query, key, env)
    wanted = dense_attention(*tensors, allowed, 64**-0.5, terms, env=env, numbers={}, tables={})
    return (operands["out"], operands["lse"]), wanted


def _right(found: Errors) -> bool:
    return found.out < 3e-2 and found.lse < 3e-3 and found.empty


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("text", ["full", "causal", "streaming(5, 600)"])
@pytest.mark.parametrize("rows", [(0, 64), (64, 128), (100, 101), (0, 190)], ids=str)
@pytest.mark.parametrize("isolates", [False, True])
def test_scores_that_outgrow_the_peak(
    text: str, shape: str, rows: tuple[int, int], isolates: bool
) -> None:
    """Rows some of whose keys are e^105 as heavy as those before, whichever warpgroup has them."""
    tensors = _growing(190, 900, slice(*rows), LATE, OUTGROWN)
    found = errors(*_result(text, CONFIGS[shape], tensors, isolates=isolates))
    assert _right(found), found
    never = _result(text, CONFIGS[shape], tensors, _never_again, isolates=isolates)
    assert not _right(errors(*never))


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("text", ["causal", "streaming(5, 600)"])
def test_a_row_has_the_bits_of_its_own_peaks(text: str, shape: str) -> None:
    """Where kernels take care: other rows that outgrow theirs, and hidden values, change none."""
    query, key, value = _growing(190, 900, slice(70, 75), LATE, OUTGROWN)
    grown, _ = _result(text, CONFIGS[shape], (query, key, value), isolates=True)
    query = query.clone()
    query[:, :, 70:75, 0] = 0.0
    value = value.clone()
    value[:, :, 890] = float("nan")  # of the last rows alone
    found, _ = _result(text, CONFIGS[shape], (query, key, value), isolates=True)
    others = torch.ones(190, dtype=torch.bool)
    others[70:75] = False
    others[180:] = False
    for one, other in zip(found, grown, strict=True):
        assert torch.equal(one[:, :, others], other[:, :, others])
    assert bool(found[0][:, :, 180:].isnan().all())


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize(
    "text", ["full", "causal", "streaming(5, 600)", "chunked(300)", "k > q", "around(200)"]
)
def test_moderate_growth_is_computed_once(text: str, shape: str) -> None:
    """Sums stay in range, and rows that do not exist never count."""
    for q_len, length in ((190, MODERATE), (77, 1.0)):
        tensors = _growing(q_len, 900, slice(None), LATE, length)
        found = errors(*_result(text, CONFIGS[shape], tensors, _never_again))
        assert _right(found), (q_len, found)


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("text", ["window(1400) or dilated(250, 8)"])
def test_passes(text: str, shape: str) -> None:
    """What earlier passes left is there a second time."""
    tensors = _growing(300, 2400, slice(None), slice(1200, 1300), OUTGROWN)
    found = errors(*_result(text, CONFIGS[shape], tensors))
    assert _right(found), found
    assert not _right(errors(*_result(text, CONFIGS[shape], tensors, _never_again)))


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("text", ["dilated(600, 3)", "window(1400) or dilated(250, 8)"])
def test_classes_that_keep_the_peak(text: str, shape: str) -> None:
    tensors = _growing(300, 2400, slice(None), slice(1200, 1300), OUTGROWN)
    found = errors(*_result(text, CONFIGS[shape], tensors))
    assert _right(found), found
    assert not _right(errors(*_result(text, CONFIGS[shape], tensors, _never_again)))


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize(
    ("score", "sink"), [(None, "2"), ("score + q / 90", None), ("score", "90 + q / 900")]
)
def test_score_terms(score: str | None, sink: str | None, shape: str) -> None:
    tensors = _growing(190, 900, slice(None), LATE, OUTGROWN)
    for text in ("full", "causal"):
        result = _result(text, CONFIGS[shape], tensors, terms=load_terms(score, sink))
        found = errors(*result)
        assert found.out < 3e-2, (text, found)
        assert found.lse < 3e-3, (text, found)


def test_large_values() -> None:
    """Weights beyond 1 times values near the end of the range overflow where the result does
    not."""
    query, key, value = _growing(128, 900, slice(None), LATE, MODERATE)
    large = 2.0**100
    value = value.clamp(-1, 1) * torch.tensor(large, dtype=torch.bfloat16)
    (out, lse), (wanted, wanted_lse) = _result("full", WIDE, (query, key, value))
    found = errors((out.double() / large, lse), (wanted / large, wanted_lse))
    assert _right(found), found


def test_values_that_are_no_numbers_stay() -> None:
    """They reach the rows that see them, and end the kernel as any others."""
    query, key, value = _growing(190, 900, slice(None), LATE, 1.0)
    value[:, :, 300] = float("nan")
    (out, lse), _ = _result("full", WIDE, (query, key, value))
    assert bool(out.isnan().all())
    assert bool(lse.isfinite().all())


@pytest.mark.parametrize("shape", CONFIGS)
def test_what_is_no_number_goes_from_pass_to_pass(shape: str) -> None:
    """A maximum drops a NaN: the log-sum-exp that the first pass left says so to the second one."""
    query, key, value = _growing(70, 2400, slice(None), LATE, 1.0)
    key[:, :, 2400 - 50] = float("nan")  # of the first pass alone
    text = "window(1400) or dilated(250, 8)"
    (out, lse), _ = _result(text, CONFIGS[shape], (query, key, value))
    assert bool(lse[:, :, 20:].isnan().all()) and bool(lse[:, :, :20].isfinite().all())
    assert bool(out[:, :, 20:].isnan().all()) and bool(out[:, :, :20].isfinite().all())
