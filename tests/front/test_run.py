"""`patterncc run` and `doctor`: right results pass, wrong ones are found."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patterncc import backward_trial, cli, gradient_verdict, rivals, trial, verdict
from patterncc.call import Call
from patterncc.codegen import judging
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError

CPU = torch.device("cpu")
SMALL = ["--q-len", "150", "--heads", "4", "--repeats", "1", "--device", "cpu"]


def attention(call: Call, dtype: str = "float32") -> tuple[Tensor, ...]:
    """Random input of a call and what the executor makes of it."""
    from patterncc.api import Attention

    problem = Problem(dtype, 16, 16)  # type: ignore[arg-type]
    query, key, value = trial.random_input(call, problem, CPU, 1, 0)
    with torch.inference_mode():
        out, lse = Attention(call.pattern)(
            query, key, value, return_lse=True, layers=call.layers, q_offset=call.q_offset
        )
    return query, key, value, out.clone(), lse.clone()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_right_results_are_right(dtype: str) -> None:
    call = Call.of(load("streaming(4, 30)"), 130, heads=2)
    found = verdict.judge(call, *attention(call, dtype))
    assert found.right and found.checked == found.rows == 130
    assert 0 <= found.error <= found.tolerance


def test_rows_without_keys_are_right() -> None:
    call = Call.of(load("causal and q - k > 9"), 64, heads=2)
    assert verdict.judge(call, *attention(call)).right


@pytest.mark.parametrize("what", ["one number", "one row's lse", "not a number", "infinite"])
def test_wrong_results_are_found(what: str) -> None:
    call = Call.of(load("streaming(4, 30)"), 130, heads=2)
    query, key, value, out, lse = attention(call)
    match what:
        case "one number":
            out[0, 1, 77, 3] += 1e-3
        case "one row's lse":
            lse[0, 0, 12] += 1e-3
        case "not a number":
            out[0, 0, 5, 5] = float("nan")
        case "infinite":
            lse[0, 1, 5] = -float("inf")
    assert not verdict.judge(call, query, key, value, out, lse).right


def test_a_wrong_mask_is_found() -> None:
    right = Call.of(load("streaming(4, 30)"), 130, heads=2)
    wrong = Call.of(load("streaming(4, 31)"), 130, heads=2)
    assert not verdict.judge(right, *attention(wrong)).right


def test_long_calls_are_sampled() -> None:
    call = Call.of(load("window(8)"), 1000, heads=2)
    found = verdict.judge(call, *attention(call), most_pairs=200 * 2 * 1000)
    assert found.right and found.checked == 200
    rows = judging.sample(1000, 200, seed=1, edge=32)
    assert len(set(rows.tolist())) == 200 and rows.tolist() == sorted(rows.tolist())
    assert set(range(32)) | set(range(968, 1000)) <= set(rows.tolist())


def test_masks_of_heads_and_layers_are_judged_apart() -> None:
    call = Call.of(load("if head == 1 then causal else window(3 + layer)"), 40, heads=2, layers=2)
    assert verdict.judge(call, *attention(call)).right


def gradients(
    call: Call, rows: Tensor, dtype: str = "float32"
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, list[Tensor]]:
    """Random input of a call, a gradient that some rows pass on, and the gradients of the input."""
    from patterncc.api import Attention

    inputs = trial.random_input(call, Problem(dtype, 16, 16), CPU, 2, 0)  # type: ignore[arg-type]
    leaves = [tensor.requires_grad_() for tensor in inputs]
    out = Attention(call.pattern)(leaves[0], leaves[1], leaves[2], layers=call.layers)
    grad_out = torch.zeros_like(out)
    grad_out[:, :, rows] = torch.randn(out[:, :, rows].shape).to(out)
    found = torch.autograd.grad(out, leaves, grad_out)
    return inputs, grad_out, [grad.clone() for grad in found]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_right_gradients_are_right(dtype: str) -> None:
    call = Call.of(load("streaming(4, 30)"), 130, heads=4, kv_heads=2)
    rows = torch.arange(130)
    inputs, grad_out, grads = gradients(call, rows, dtype)
    found = gradient_verdict.judge_gradients(call, inputs, grad_out, grads, rows)
    assert found.right and found.checked == found.rows == 130
    assert all(0 <= error <= found.tolerance for error in found.errors.values())


def test_gradients_of_some_rows_are_checked() -> None:
    call = Call.of(load("causal and k > 3"), 300, heads=2, kv_heads=1)
    rows = gradient_verdict.sampled_rows(call, 2, seed=1, most_pairs=100 * 2 * 2 * 300)
    assert len(rows) == 100 and set(range(8)) | set(range(292, 300)) <= set(rows.tolist())
    inputs, grad_out, grads = gradients(call, rows)
    assert gradient_verdict.judge_gradients(call, inputs, grad_out, grads, rows).right
    grads[0][0, 1, min(set(range(300)) - set(rows.tolist()))] += 1e-3  # should be 0
    assert not gradient_verdict.judge_gradients(call, inputs, grad_out, grads, rows).right


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("what", ["one number", "one head", "not a number"])
def test_wrong_gradients_are_found(which: int, what: str) -> None:
    call = Call.of(load("streaming(4, 30)"), 64, heads=2)
    rows = torch.arange(64)
    inputs, grad_out, grads = gradients(call, rows)
    match what:
        case "one number":
            grads[which][1, 1, 47, 3] += 1e-3
        case "one head":
            grads[which][0, 1] = grads[which][0, 0]
        case "not a number":
            grads[which][0, 0, 5, 5] = float("nan")
    assert not gradient_verdict.judge_gradients(call, inputs, grad_out, grads, rows).right


# ------------------------------------------------------------------------------------- the command


def test_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a.pat"
    file.write_text("pattern a(size = 20): causal and (window(size) or sinks(2))", encoding="utf-8")
    assert cli.main(["run", str(file), *SMALL]) == cli.OK
    out = capsys.readouterr().out
    for words in (
        "a on cpu",
        "density",
        "visited tiles",
        "dense, causal",
        "all rows of every head",
    ):
        assert words in out
    assert out.endswith("right\n")


def test_run_json(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", "streaming", "-p", "window=20", "--kv-heads", "2", "--kv-len", "200", "--json"]
    assert cli.main([*argv, *SMALL]) == cli.OK
    document = json.loads(capsys.readouterr().out)
    assert document["check"]["right"] and document["check"]["checked"] == 150
    assert document["call"]["q_offset"] == 50 and document["call"]["kv_heads"] == 2
    visible = sum(min(50 + row + 1, 20 + min(4, max(0, 50 + row + 1 - 20))) for row in range(150))
    assert document["pairs"] == 4 * visible
    assert document["seconds"]["least"] <= document["seconds"]["median"]
    masked, causal = document["dense"]
    assert masked["seconds"]["count"] == 1
    assert causal["seconds"] is None and "positions" in causal["skipped"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_run_in_every_type(capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    assert cli.main(["run", "ladder", "--dtype", dtype, *SMALL]) == cli.OK
    assert dtype in capsys.readouterr().out


def test_run_by_heads(capsys: pytest.CaptureFixture[str]) -> None:
    text = "if head in {0, 2} then causal else window(9)"
    assert cli.main(["run", text, "--json", *SMALL]) == cli.OK
    document = json.loads(capsys.readouterr().out)
    whole = 150 * 151 // 2
    window = sum(min(9, row + 1) for row in range(150))
    assert document["pairs"] == 2 * whole + 2 * window


def test_a_wrong_result_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = verdict.judge

    def spoiled(
        call: Call, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, **options: Any
    ) -> verdict.Verdict:
        return honest(call, q, k, v, out + 1, lse, **options)

    monkeypatch.setattr(trial, "judge", spoiled)
    assert cli.main(["run", "causal", *SMALL]) == cli.FAILED
    assert capsys.readouterr().out.endswith("WRONG\n")


def test_run_backward(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", "streaming", "-p", "window=20", "--kv-heads", "2", "--backward", *SMALL]
    assert cli.main(argv) == cli.OK
    out = capsys.readouterr().out
    for words in (
        "first backward",
        "dense, same mask, backward",
        "grad_query error",
        "grad_key error",
        "grad_value error",
    ):
        assert words in out
    assert out.endswith("right\n")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_run_backward_json(capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    argv = ["run", "if head == 1 then causal else window(9)", "--backward", "--json"]
    assert cli.main([*argv, "--batch", "2", "--dtype", dtype, *SMALL]) == cli.OK
    found = json.loads(capsys.readouterr().out)["backward"]
    assert found["check"]["right"] and found["check"]["checked"] == 150
    assert set(found["check"]["errors"]) == {"grad_query", "grad_key", "grad_value"}
    assert found["seconds"]["count"] == 1 and found["first_seconds"] > 0
    assert [dense["name"] for dense in found["dense"]] == ["dense, same mask", "dense, causal"]


def test_run_without_backward_says_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "window(9)", "--json", *SMALL]) == cli.OK
    assert json.loads(capsys.readouterr().out)["backward"] is None
    assert cli.main(["run", "window(9)", *SMALL]) == cli.OK
    assert "backward" not in capsys.readouterr().out


def test_a_wrong_gradient_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = gradient_verdict.judge_gradients

    def spoiled(
        call: Call, inputs: Any, grad: Tensor, grads: Any, rows: Tensor, **options: Any
    ) -> gradient_verdict.GradientVerdict:
        return honest(call, inputs, grad, (grads[0], grads[1] * 1.001, grads[2]), rows, **options)

    monkeypatch.setattr(backward_trial, "judge_gradients", spoiled)
    assert cli.main(["run", "causal", "--backward", *SMALL]) == cli.FAILED
    assert capsys.readouterr().out.endswith("WRONG\n")


def test_devices() -> None:
    assert trial.choose_device("cpu") == CPU
    with pytest.raises(ConfigError):
        trial.choose_device("cuda:99")
    with pytest.raises(ConfigError):
        trial.choose_device("meta")


def test_a_mask_too_large_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rivals.MOST_MASK, "cpu", 100)
    call = Call.of(load("window(8)"), 64)
    found = trial.run(call, Problem("float32", 16, 16), CPU, repeats=1)
    assert found.dense[0].timing is None and "GiB" in found.dense[0].skipped


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == (cli.OK if document["ok"] else cli.FAILED)
    findings = {finding["name"]: finding for finding in document["findings"]}
    assert findings["cpu"]["state"] == "ok", findings["cpu"]
    assert "kernel: " in findings["cpu"]["detail"]
    assert {"patterncc", "Python", "torch", "islpy", "PATTERNCC_CACHE_DIR"} <= set(findings)


@pytest.mark.gpu
def test_run_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "streaming", "--json", "--repeats", "3"]) == cli.OK
    document = json.loads(capsys.readouterr().out)
    assert document["device"] == "cuda:0" and document["call"]["dtype"] == "bfloat16"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_run_backward_on_a_gpu(capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    argv = ["run", "streaming", "--backward", "--json", "--repeats", "3", "--dtype", dtype]
    assert cli.main(argv) == cli.OK
    assert json.loads(capsys.readouterr().out)["backward"]["check"]["right"]
