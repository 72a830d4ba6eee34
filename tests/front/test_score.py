"""Score terms in calls: results, gradients, values, torch.compile, what is wrong."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import patterncc
from patterncc.codegen.score.reference import dense_attention
from patterncc.dsl.errors import ArgumentError, PatternError, UnsupportedError
from patterncc.dsl.score.terms import load_terms

SCORE = "softcap(score, cap) - slopes[head] * (0.1 * (q - k))"
SINK = "sinks[head]"


def tensors(dtype: torch.dtype = torch.float64, q_len: int = 70) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.to(dtype).requires_grad_()

    return {
        "query": draw(2, 4, q_len, 8),
        "key": draw(2, 2, 70, 8),
        "value": draw(2, 2, 70, 8),
        "slopes": draw(4),
        "sinks": draw(4),
    }


def expected(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    q_len = given["query"].shape[2]
    mask = patterncc.compile("window(30)").mask(q_len, 70)
    return dense_attention(
        given["query"],
        given["key"],
        given["value"],
        mask,
        8**-0.5,
        load_terms(SCORE, SINK),
        numbers={"cap": 2.0},
        tables={name: given[name] for name in ("slopes", "sinks")},
    )


def test_results_and_gradients() -> None:
    given = tensors(q_len=50)
    attend = patterncc.compile("window(30)", score=SCORE, sink=SINK)
    out, lse = attend(**given, cap=2.0, return_lse=True)  # type: ignore[call-overload]
    wanted = expected(given)
    torch.testing.assert_close((out, lse), wanted)
    weights = torch.randn(out.shape, dtype=out.dtype)
    leaves = list(given.values())
    found = torch.autograd.grad((out * weights).sum() + lse.sum(), leaves)
    other = torch.autograd.grad((wanted[0] * weights).sum() + wanted[1].sum(), leaves)
    torch.testing.assert_close(found, other)
    query, key, value, slopes, sinks = given.values()
    again = patterncc.attention(
        query, key, value, "window(30)", score=SCORE, sink=SINK, cap=2.0, slopes=slopes, sinks=sinks
    )
    assert torch.equal(out, again)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    given = tensors()
    given["slopes"] = given["slopes"].detach()
    attend = patterncc.compile("window(30)", score=SCORE, sink=SINK)
    out: Any = attend(**given, cap=2.0)  # type: ignore[call-overload]
    out.sum().backward()
    assert given["slopes"].grad is None
    assert given["sinks"].grad is not None and given["sinks"].grad.abs().max() > 0
    with torch.no_grad():
        assert not attend(**given, cap=2.0).requires_grad  # type: ignore[call-overload]


def test_a_table_alone_may_have_a_gradient() -> None:
    given = {name: tensor.detach() for name, tensor in tensors().items()}
    given["sinks"].requires_grad_()
    attend = patterncc.compile("window(30)", score=SCORE, sink=SINK)
    _, lse = attend(**given, cap=2.0, return_lse=True)  # type: ignore[call-overload]
    (grad,) = torch.autograd.grad(lse.sum(), given["sinks"])
    (other,) = torch.autograd.grad(expected(given)[1].sum(), given["sinks"])
    torch.testing.assert_close(grad, other)


def test_tables_of_another_type_than_the_query() -> None:
    given = tensors(torch.bfloat16)
    given["sinks"] = given["sinks"].detach().float().requires_grad_()
    attend = patterncc.compile("window(30)", score=SCORE, sink=SINK)
    out: Any = attend(**given, cap=2.0)  # type: ignore[call-overload]
    out.float().square().sum().backward()
    assert given["sinks"].grad is not None and given["sinks"].grad.dtype == torch.float32
    assert given["slopes"].grad is not None and given["slopes"].grad.dtype == torch.bfloat16


def test_gradcheck() -> None:
    attend = patterncc.compile("causal", score="softcap(score, 2) + bias[head, q - k]")
    query = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def call(query: Tensor, bias: Tensor) -> Any:
        return attend(query, query, query, return_lse=True, bias=bias)

    assert torch.autograd.gradcheck(call, (query, bias))


def test_second_derivatives_are_refused() -> None:
    given = tensors()
    attend = patterncc.compile("window(30)", score=SCORE, sink=SINK)
    out: Any = attend(**given, cap=2.0)  # type: ignore[call-overload]
    (grad,) = torch.autograd.grad(out.sum(), given["query"], create_graph=True)
    with pytest.raises(UnsupportedError, match="first derivatives only"):
        torch.autograd.grad(grad.sum(), given["query"])


def test_a_compiled_graph_is_whole() -> None:
    given = tensors(torch.float32)
    attend = patterncc.compile("window(30)", score=SCORE, sink=SINK)

    def step(query: Tensor, slopes: Tensor, sinks: Tensor) -> Tensor:
        key, value = given["key"], given["value"]
        out = attend(query, key, value, cap=2.0, slopes=slopes, sinks=sinks)
        return out.square().sum()

    parts = [given[name] for name in ("query", "slopes", "sinks")]
    wanted = torch.autograd.grad(step(*parts), parts)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*parts), parts)
    torch.testing.assert_close(found, wanted)


def test_opcheck() -> None:
    given = tensors(torch.float32, q_len=9)
    terms = load_terms(SCORE, SINK)
    tables = [given["sinks"], given["slopes"]]
    pattern = patterncc.compile("window(30)").pattern.structure
    options: tuple[Any, ...] = (pattern, tables, [], None, None, 0, None, terms.text, [2.0])
    inputs = (given["query"], given["key"], given["value"])
    torch.library.opcheck(torch.ops.patterncc.attn_fwd, (*inputs, *options))
    out, lse = torch.ops.patterncc.attn_fwd(*inputs, *options)
    with torch.no_grad():
        for needs in (None, [True, False, True, True, False]):
            args = (out.clone(), None, *inputs, out, lse, *options, True, False, needs)
            torch.library.opcheck(torch.ops.patterncc.attn_bwd, args)


def test_func_grad() -> None:
    given = {name: tensor.detach() for name, tensor in tensors().items()}
    attend = patterncc.compile("window(30)", score=SCORE, sink=SINK)

    def loss(sinks: Tensor, slopes: Tensor) -> Tensor:
        out: Any = attend(**{**given, "sinks": sinks, "slopes": slopes}, cap=2.0)  # type: ignore[call-overload]
        total: Tensor = out.square().sum()
        return total

    found = torch.func.grad(loss, argnums=(0, 1))(given["sinks"], given["slopes"])
    leaves = [given[name].clone().requires_grad_() for name in ("sinks", "slopes")]
    torch.testing.assert_close(found, torch.autograd.grad(loss(*leaves), leaves))


def test_terms_are_part_of_a_value() -> None:
    attend = patterncc.compile("window(30)", score=SCORE, sink=SINK)
    assert attend == patterncc.compile("window(30)", score=f"0 + {SCORE}", sink=SINK)
    assert attend != patterncc.compile("window(30)", score=SCORE)
    assert attend != patterncc.compile("window(30)")
    assert patterncc.compile("causal", score="score") == patterncc.compile("causal")
    for other in (pickle.loads(pickle.dumps(attend)), copy.deepcopy(attend)):
        assert other == attend and hash(other) == hash(attend)
        assert other.terms == attend.terms
    assert eval(repr(attend)) == attend
    assert "score=" not in repr(patterncc.compile("causal", sink="0.5"))[:22]


def test_what_the_documentation_shows_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "scores.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["sinks"].grad is not None and names["embedding"].weight.grad is not None
    buckets = names["bucket"](torch.tensor([-200, -128, -20, -8, -1, 0, 1, 7, 8, 200]))
    assert buckets.tolist() == [15, 15, 10, 8, 1, 0, 17, 23, 24, 31]


def test_explain_lists_the_terms() -> None:
    attend = patterncc.compile(
        "window(30)", score="softcap(score, cap) + relative_bias(bias, 9)", sink=SINK
    )
    text = attend.explain(q_len=128)
    assert "score terms" not in patterncc.compile("window(30)").explain(q_len=128)
    assert text.partition("\nscore terms\n")[2].splitlines() == [
        "  logit      cap * tanh(score / cap) + bias[head, min(max(q - k, -9), 9) + 9]",
        "  by score   1.0 - tanh(score / cap) * tanh(score / cap)",
        "    by bias[head, min(max(q - k, -9), 9) + 9]: 1.0; summed on CPUs and GPUs",
        "  sink       sinks[head]",
        "    by sinks[head]: 1.0; summed on CPUs and GPUs",
        "  numbers    cap",
        "  tables     bias (2 axes), sinks (1 axes)",
    ]


def test_kernels_are_emitted_with_terms() -> None:
    text = patterncc.compile("window(30)", score="softcap(score, 50)").emit("triton")
    assert "# score: 50.0 * tanh(score / 50.0)" in text
    assert "hyperbolic_tangent" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cap": None}, "`cap` was not given; the score needs a number"),
        ({"cap": "2"}, "`cap` is '2'; the score needs a number"),
        ({"cap": True}, "`cap` is True; the score needs a number"),
        ({"cap": float("inf")}, "`cap` is inf; the score needs a finite number"),
        ({"cap": torch.ones(())}, "`cap` is a tensor; the score needs a number"),
        ({"sinks": None}, "`sinks` was not given; the score needs a tensor"),
        ({"sinks": 2.0}, "`sinks` is 2.0; the score needs a tensor"),
        ({"sinks": torch.ones(4, 1)}, "`sinks` has 2 axes; the score reads 1"),
        ({"sinks": torch.ones(4, dtype=torch.int64)}, "`sinks` is torch.int64"),
        ({"other": 2}, "`other` is not a parameter"),
    ],
)
def test_wrong_values(change: dict[str, Any], message: str) -> None:
    attend = patterncc.compile("window(30)", score=SCORE, sink=SINK)
    values = {**tensors(), "cap": 2.0, **change}
    given = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(ArgumentError, match=message.replace("[", r"\[")):
        attend(**given)


def test_wrong_terms() -> None:
    with pytest.raises(PatternError, match="no function is called `softcup`"):
        patterncc.compile("causal", score="softcup(score, 2)")
    with pytest.raises(PatternError, match="no `score` for it"):
        patterncc.compile("causal", sink="score")
    with pytest.raises(ArgumentError, match="`n` is a parameter of the pattern and a name in"):
        patterncc.compile("pattern w(n = 4): 0 <= q - k < n", score="score * n")
    given = tensors()
    with pytest.raises(ArgumentError, match="`layers` was not given; the score reads"):
        patterncc.attention(
            given["query"], given["key"], given["value"], "causal", score="score / layers"
        )


def test_no_keys_and_no_rows() -> None:
    attend = patterncc.compile("causal", sink="sinks[head]")
    sinks = torch.tensor([0.5, -1.0], requires_grad=True)
    for q_len, kv_len in ((3, 0), (0, 3)):
        query, key = torch.randn(1, 2, q_len, 8), torch.randn(1, 2, kv_len, 8)
        out, lse = attend(query, key, key, sinks=sinks, return_lse=True)
        assert not out.any()
        torch.testing.assert_close(lse, sinks.detach()[None, :, None].expand(1, 2, q_len))
        (grad,) = torch.autograd.grad(lse.sum(), sinks)
        torch.testing.assert_close(grad, torch.full((2,), float(q_len)))
