"""Score terms at the command line: `run`, `explain` and `compile` with `--score` and `--sink`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patterncc import cli, trial
from patterncc.api import Attention
from patterncc.call import Call
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.score.terms import load_terms
from patterncc.score_example import Scores, scores_of
from patterncc.verdict import Oracle, judge

SMALL = ["--q-len", "90", "--heads", "4", "--repeats", "1", "--device", "cpu"]
BOTH = ["--score", "softcap(score, cap) + alibi(slopes)", "--sink", "sinks[head]"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_run_checks_terms_and_the_gradients_of_tables(
    capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    argv = ["run", "window(30)", *BOTH, "--number", "cap=5", "--backward", "--json", *SMALL]
    argv += ["--kv-heads", "2", "--batch", "2", "--dtype", dtype]
    assert cli.main([*argv, "--table", "slopes=0.5,0.25,0.125,0.0625"]) == cli.OK
    found = json.loads(capsys.readouterr().out)
    assert found["score_terms"]["numbers"] == {"cap": 5.0}
    assert found["score_terms"]["tables"] == {
        "sinks": {"shape": [4], "drawn": True},
        "slopes": {"shape": [4], "drawn": False},
    }
    check = found["backward"]["check"]
    assert set(check["errors"]) == {
        "grad_query",
        "grad_key",
        "grad_value",
        "grad_sinks",
        "grad_slopes",
    }
    assert all(0 < check["errors"][name] <= check["allowed"][name] for name in check["errors"])
    assert [rival["name"] for rival in found["dense"]] == [
        "dense, same mask, no terms",
        "dense, causal, no terms",
    ]


def test_run_prints_what_the_terms_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "window(30)", *BOTH, "--number", "cap=5", *SMALL]) == cli.OK
    out = capsys.readouterr().out
    assert "score  cap * tanh(score / cap) - slopes[head] * abs(q - k); sink  sinks[head]" in out
    assert "table  slopes: 4, drawn" in out
    assert out.endswith("right\n")


@pytest.mark.parametrize("what", ["another score", "another table", "no sink"])
def test_wrong_terms_are_found(what: str) -> None:
    """The oracle is told other terms than the executor."""
    terms = load_terms("score - slopes[head] * (q - k)", "sinks[head]")
    other = {
        "another score": load_terms("score - 1.01 * slopes[head] * (q - k)", "sinks[head]"),
        "another table": terms,
        "no sink": load_terms("score - slopes[head] * (q - k)"),
    }[what]
    call = Call.of(load("window(30)"), 90, heads=2)
    query, key, value = trial.random_input(call, Problem("float32", 16, 16), CPU, 1, 0)
    tables: dict[str, Any] = {
        "slopes": torch.tensor([0.1, 0.2]),
        "sinks": torch.tensor([0.5, 1.0]),
    }
    with torch.inference_mode():
        out, lse = Attention(call.pattern, terms)(query, key, value, return_lse=True, **tables)
    assert judge(call, query, key, value, out, lse, oracle=Oracle(terms, {}, tables)).right
    if what == "another table":
        tables = tables | {"sinks": torch.tensor([0.5, 1.01])}
    assert not judge(call, query, key, value, out, lse, oracle=Oracle(other, {}, tables)).right


def drawn(score: str, batch: int = 1, seed: int = 0) -> Scores:
    call = Call.of(load("causal"), 50, 70, heads=4, kv_heads=2, layers=3)
    return scores_of(load_terms(score), call, {}, {}, batch=batch, seed=seed)


def test_drawn_tables_have_what_the_call_can_read() -> None:
    found = drawn("score + b[head, clamp(q - k, -8, 8) + 8] + t[batch, layer, k // 16]", 2)
    assert {name: table.shape for name, table in found.tables.items()} == {
        "b": (4, 17),
        "t": (2, 3, 5),
    }
    assert drawn("score + b[head] + b[kv_head + 5]").tables["b"].shape == (7,)
    assert drawn("score + b[k - 200]").tables["b"].shape == (1,)  # nothing of it is read
    again = drawn("score + b[head, clamp(q - k, -8, 8) + 8]", 2)
    assert np.array_equal(again.tables["b"], found.tables["b"])
    other = drawn("score + b[head, clamp(q - k, -8, 8) + 8]", seed=1)
    assert not np.array_equal(other.tables["b"], found.tables["b"])


def test_tables_that_are_too_large_are_not_drawn() -> None:
    call = Call.of(load("causal"), 8192)
    with pytest.raises(ConfigError, match=r"67,108,864 entries.*--table t=FILE"):
        scores_of(load_terms("score + t[q, k]"), call, {}, {})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--score", "softcap(score, cap)"], "--number cap=X"),
        (["--number", "cap=3"], "no score term reads it"),
        (["--score", "score + b[head]", "--table", "b=[[1, 2]]"], "has 2 axes"),
        (["--score", "score + b[head]", "--table", "b=1,x"], "real numbers"),
        (["--score", "score + b[head]", "--table", "b=[1, [2]]"], "real numbers"),
        (["--score", "score + b[head]", "--table", "c=1,2"], "no such table"),
        (["--score", "score +"], "expected a number"),
        (["--sink", "score"], "error"),
    ],
)
def test_mistakes_are_named(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert cli.main(["run", "causal", *argv, *SMALL]) != cli.OK
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["cap", "cap=", "cap=x", "cap=nan", "3=4"])
def test_a_number_is_a_name_and_a_finite_number(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    argv = ["run", "causal", "--score", "softcap(score, cap)", "--number", text]
    assert cli.main(argv) == cli.USAGE
    assert "is not NAME=X" in capsys.readouterr().err


def test_tables_from_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", np.array([0.5, 1.0, -1.0, 2.0], np.float32))
    (tmp_path / "b.json").write_text("[0.5, 1, -1, 2]", encoding="utf-8")
    for name in ("b.npy", "b.json"):
        argv = ["run", "causal", "--score", "score + b[head]", "--table", f"b={tmp_path / name}"]
        assert cli.main([*argv, *SMALL]) == cli.OK
        assert "table  b: 4, given" in capsys.readouterr().out


def test_explain_lists_terms(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["explain", "window(30)", "--q-len", "256", *BOTH]
    assert cli.main(argv) == cli.OK
    out = capsys.readouterr().out
    assert "score terms\n  logit      cap * tanh(score / cap) - slopes[head] * abs(q - k)" in out
    assert cli.main([*argv, "--json"]) == cli.OK
    found = json.loads(capsys.readouterr().out)["score_terms"]
    assert found["tables"] == {"sinks": 1, "slopes": 1} and found["numbers"] == ["cap"]
    assert found["by_entry"]["sinks[head]"] == "1.0"


def test_compile_writes_terms_into_the_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", "causal", "--emit", "triton", "--score", "softcap(score, 50)"]) == 0
    assert "# score: 50.0 * tanh(score / 50.0)" in capsys.readouterr().out
