"""`deterministic=False`: where the option arrives, and that on a CPU it changes nothing."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import patterncc
import patterncc.ops  # registers the operators
from patterncc import gpu_calls, launchers
from patterncc.cli import main
from patterncc.prepared import BACKWARD, Options
from patterncc.settings import settings

TEXT = "causal and q - k < 9"


def _tensors() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, 2, 40, 16, requires_grad=True) for _ in range(3)]


def _gradients(attend: Any, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(attend(*tensors).square().sum(), tensors)


@pytest.mark.parametrize("options", [{}, {"score": "softcap(score, 5)"}])
def test_the_operators_are_told(options: dict[str, str]) -> None:
    tensors = _tensors()
    usual = patterncc.compile(TEXT, **options)  # type: ignore[arg-type]
    free = patterncc.compile(TEXT, deterministic=False, **options)  # type: ignore[arg-type]
    given = []

    def kept(*arguments: Any) -> Options:
        given.append(Options(*arguments))
        return given[-1]

    with patch("patterncc.cpu_calls.Options", kept):
        found, wanted = _gradients(free, tensors), _gradients(usual, tensors)
    assert [one.deterministic for one in given] == [False, False, True, True]
    assert all(map(torch.equal, found, wanted))


def test_whole_graphs() -> None:
    tensors = _tensors()
    attend = patterncc.compile(TEXT, deterministic=False)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for one, other in zip(_gradients(compiled, tensors), _gradients(attend, tensors), strict=True):
        torch.testing.assert_close(one, other)


def test_operators_pass_opcheck() -> None:
    query, key, value = (tensor.detach() for tensor in _tensors())
    text = patterncc.compile(TEXT).pattern.structure
    options: tuple[Any, ...] = (text, [], [], None, None, 0, None, None, [], False)
    forward = torch.ops.patterncc.attn_fwd.default
    torch.library.opcheck(forward, (query, key, value, *options))
    out, lse = forward(query, key, value, *options)
    arguments = (torch.randn_like(out), None, query, key, value, out, lse)
    torch.library.opcheck(torch.ops.patterncc.attn_bwd.default, (*arguments, *options))


def test_second_derivatives() -> None:
    query, key, value = (tensor.detach().double().requires_grad_() for tensor in _tensors())
    attend = patterncc.compile(TEXT, deterministic=False)

    def loss(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = attend(query, key, value)
        return out.square().sum()

    inputs = tuple(
        tensor[:, :1, :6, :4].detach().requires_grad_() for tensor in (query, key, value)
    )
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_it_is_kept_in_a_pickle() -> None:
    tensors = _tensors()
    attend = pickle.loads(pickle.dumps(patterncc.compile("causal", deterministic=False)))
    assert "in one pass" in attend.explain(16384)
    assert attend == patterncc.compile("causal")
    assert _gradients(attend, tensors)[0].shape == tensors[0].shape


@pytest.mark.parametrize("required", [False, True])
def test_launchers_are_told_unless_torch_asks_for_determinism(required: bool) -> None:
    """On GPUs; here up to what plans the call."""
    query, key, value = (tensor.detach() for tensor in _tensors())
    out, lse = torch.ops.patterncc.attn_fwd.default(query, key, value, TEXT, [])
    arguments = (out, None, query, key, value, out, lse)
    assert len(arguments) == BACKWARD

    class Asked(Exception):
        pass

    with patch.object(launchers, "backward_launcher", side_effect=Asked) as launcher:
        torch.use_deterministic_algorithms(required)
        try:
            with pytest.raises(Asked):
                gpu_calls.attn_bwd(*arguments, TEXT, [], [], None, None, 0, None, None, [], False)
        finally:
            torch.use_deterministic_algorithms(False)
    assert launcher.call_args.args[-2] is required


def test_explain_says_what_becomes_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "causal", "--no-deterministic"]) == 0
    free = capsys.readouterr().out
    assert "grads   in one pass on cuda:90: a tile of 128 keys is seen by" in free
    assert "turns" not in free
    assert main(["explain", "window(256)", "--no-deterministic", "--json"]) == 0
    gradients = json.loads(capsys.readouterr().out)["gradients"]
    assert gradients["one_pass"] is False
    assert "one pass is faster from 16 on" in gradients["reason"]
    assert main(["explain", "causal", "--json"]) == 0
    gradients = json.loads(capsys.readouterr().out)["gradients"]
    assert gradients["one_pass"] is True
    assert "key tiles take turns, rising" in gradients["reason"]
    assert main(["explain", "streaming(64, 1024)"]) == 0
    assert "own on cuda:90: key tiles that take turns are" in capsys.readouterr().out
    assert main(["explain", "dilated(4096, 8)", "--no-deterministic"]) == 0
    assert "own on cuda:90: no kernel does it" in capsys.readouterr().out


def test_explain_says_what_the_environment_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    asked = replace(settings(), one_pass=False)
    with patch("patterncc.explain.settings", lambda: asked):
        assert main(["explain", "causal"]) == 0
    assert "PATTERNCC_ONE_PASS=0 asks for two kernels" in capsys.readouterr().out


def test_run_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", TEXT, "--backward", "--no-deterministic", "--q-len", "64", "--repeats", "1"]
    assert main([*arguments, "--device", "cpu", "--heads", "2"]) == 0
    assert "right" in capsys.readouterr().out
