"""`isolate`: where the option arrives, what it is part of, and that on a CPU it always holds."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import patterncc
import patterncc.ops  # registers the operators
from patterncc import eager, gpu_calls, launchers, programs, signatures
from patterncc.cli import main
from patterncc.codegen.gpu.gluon.reasons import HOPPER
from patterncc.codegen.problem import DType, Problem
from patterncc.operators import attn_fwd
from patterncc.prepared import Options
from patterncc.settings import Settings, settings
from tests.gpu.test_isolation_gpu import CASES, GLUON

TEXT = "causal and q - k < 9"


def _tensors() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, 2, 40, 16, requires_grad=True) for _ in range(3)]


def _gradients(attend: Any, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(attend(*tensors).square().sum(), tensors)


def _isolating() -> Settings:
    return replace(settings(), isolate=True)


@pytest.mark.parametrize("options", [{}, {"score": "softcap(score, 5)"}, {"deterministic": False}])
def test_the_operators_are_told(options: dict[str, Any]) -> None:
    tensors = _tensors()
    given = []

    def kept(*arguments: Any) -> Options:
        given.append(Options(*arguments))
        return given[-1]

    with patch("patterncc.cpu_calls.Options", kept):
        for isolate in (True, False, None):
            _gradients(patterncc.compile(TEXT, isolate=isolate, **options), tensors)
    assert [one.isolate for one in given] == [True, True, False, False, None, None]
    assert {one.deterministic for one in given} == {options.get("deterministic", True)}


def test_attention_takes_it() -> None:
    query, key, value = _tensors()
    with patch("patterncc.cpu_calls.Options", side_effect=Options) as options:
        patterncc.attention(query, key, value, TEXT, isolate=True)
        patterncc.attention(query, key, value, TEXT)
    assert [Options(*call.args).isolate for call in options.call_args_list] == [True, None]


def test_it_is_part_of_the_value() -> None:
    usual = patterncc.compile(TEXT)
    asked = [patterncc.compile(TEXT, isolate=isolate) for isolate in (True, False)]
    every = [usual, *asked]
    assert len(set(every)) == 3 and asked[0] == patterncc.compile(TEXT, isolate=True)
    assert [one.isolate for one in every] == [None, True, False]
    assert repr(asked[0]).endswith(", isolate=True)") and "isolate" not in repr(usual)
    for one in every:
        assert eval(repr(one), {"patterncc": patterncc}) == one
        assert pickle.loads(pickle.dumps(one)) == one


def test_the_environment_gives_the_default() -> None:
    with patch("patterncc.settings.settings", _isolating):
        by_environment = patterncc.compile(TEXT)
        assert by_environment.isolate
        assert not patterncc.compile(TEXT, isolate=False).isolate
    assert pickle.loads(pickle.dumps(by_environment)).isolate  # wherever it is read again


def test_whole_graphs() -> None:
    tensors = _tensors()
    attend = patterncc.compile(TEXT, isolate=True)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for one, other in zip(_gradients(compiled, tensors), _gradients(attend, tensors), strict=True):
        torch.testing.assert_close(one, other)

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return patterncc.attention(query, key, value, TEXT, isolate=True)

    out = torch.compile(call, fullgraph=True, backend="aot_eager")(*tensors)
    torch.testing.assert_close(out, attend(*tensors))


class _Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = patterncc.compile(TEXT, isolate=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = self.attend(query, key, value)
        return out


_LOAD = """
import sys, torch, patterncc.ops
program = torch.export.load(sys.argv[1])
(node,) = [n for n in program.graph.nodes if "attn_fwd" in str(n.target)]
assert node.args[-1] is True or node.kwargs.get("isolate") is True, (node.args, node.kwargs)
torch.manual_seed(0)
print(program.module()(*[torch.randn(1, 2, 40, 16) for _ in range(3)]).sum().item())
"""


def test_exported_programs(tmp_path: Any) -> None:
    """What a graph holds says it, in a process without the environment's default."""
    tensors = tuple(tensor.detach() for tensor in _tensors())
    program = torch.export.export(_Module(), tensors)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path = tmp_path / "program.pt2"
    path.write_bytes(buffer.getvalue())
    found = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PATTERNCC_ISOLATE": ""},
    )
    assert float(found.stdout) == pytest.approx(float(_Module()(*tensors).sum()), rel=1e-4)


def test_operators_pass_opcheck() -> None:
    query, key, value = (tensor.detach() for tensor in _tensors())
    text = patterncc.compile(TEXT).pattern.structure
    options: tuple[Any, ...] = (text, [], [], None, None, 0, None, None, [], True, True)
    forward = torch.ops.patterncc.attn_fwd.default
    torch.library.opcheck(forward, (query, key, value, *options))
    out, lse = forward(query, key, value, *options)
    arguments = (torch.randn_like(out), None, query, key, value, out, lse)
    torch.library.opcheck(torch.ops.patterncc.attn_bwd.default, (*arguments, *options))


@pytest.mark.parametrize("isolate", [True, False, None])
def test_launchers_are_told(isolate: bool | None) -> None:
    """On GPUs; here up to what plans the call."""
    query, key, value = (tensor.detach() for tensor in _tensors())
    out, lse = attn_fwd(query, key, value, TEXT, [])
    options: tuple[Any, ...] = (TEXT, [], [], None, None, 0, None, None, [], True, isolate)

    class Asked(Exception):
        pass

    with patch.object(launchers, "launcher", side_effect=Asked) as launcher:
        with pytest.raises(Asked):
            gpu_calls.attn_fwd(query, key, value, *options)
        assert launcher.call_args.args[-1] is isolate
    with patch.object(launchers, "backward_launcher", side_effect=Asked) as launcher:
        with pytest.raises(Asked):
            gpu_calls.attn_bwd(out, None, query, key, value, out, lse, *options)
        assert launcher.call_args.args[-1] is isolate


def test_plans_of_both_are_kept_apart() -> None:
    query, key, value = (tensor.detach() for tensor in _tensors())
    signature = signatures.signature_of(TEXT)
    places = {
        eager.call_signature(signature, None, query, key, value, eager.DEFAULTS, {}, isolate)
        for isolate in (None, True, False)
    }
    assert len(places) == 3
    options = [Options(TEXT, [])._replace(isolate=isolate) for isolate in (None, True, False)]
    assert len({one.signature for one in options}) == 3


@pytest.mark.parametrize("isolate", [True, False, None])
def test_on_a_cpu_it_always_holds(isolate: bool | None) -> None:
    """A static cache: garbage behind the keys that are there reaches nothing."""
    query, key, value = (tensor.detach() for tensor in _tensors())
    attend = patterncc.compile("causal", isolate=isolate)
    wanted = attend(query[:, :, :10], key, value, q_offset=10)
    key[:, :, 20:], value[:, :, 20:] = math.inf, math.nan
    found = attend(query[:, :, :10], key, value, q_offset=10)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", GLUON)
def test_gluon_writes_what_runs_on_gpus(name: str) -> None:
    """The cases of tests/gpu have all shapes of its tiles."""
    text, options = CASES[name]
    dtype: DType = "float16" if options["dtype"] == torch.float16 else "bfloat16"
    width = options["head_dim"]
    problem = Problem(dtype, width, width, 2, isolates=True)
    structure = patterncc.compile(text).pattern.structure
    config = programs.emitter_choice(structure, problem, HOPPER, ()).config
    assert config is not None and (config.block_q, config.block_k) == GLUON[name]


# ------------------------------------------------------------------------------------ commands


def test_explain_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Where it holds: Gluon writes kernels of `causal`, not of tables that decide on tiles."""
    more = "  repair  on GPUs of what NaN and infinities spoil, a launch more for each kernel"
    itself = f"  repair  of the output that NaN and infinities spoil, by the kernel on {HOPPER};\n"
    of_gluon = patterncc.compile("causal")
    assert itself in of_gluon.explain(4096) and "not of gradients" in of_gluon.explain(4096)
    assert "  repair  " not in patterncc.compile("causal", isolate=False).explain(4096)
    assert "  repair  " not in of_gluon.explain(4096, dtype="float32")
    isolating = patterncc.compile("causal", isolate=True)
    assert f"{more}, but none for Gluon's on {HOPPER}\n" in isolating.explain(4096)
    assert f"{more}\n" in isolating.explain(4096, dtype="float32")
    assert main(["explain", "causal", "--isolate", "--no-deterministic"]) == 0
    shown = capsys.readouterr().out
    assert more in shown and "kernel  Gluon on cuda:90" in shown
    assert "grads   in kernels of their own" in shown and "does not isolate" in shown
    for options, wanted in (([], None), (["--isolate"], True), (["--no-isolate"], False)):
        assert main(["explain", "causal", *options, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["call"]["isolates"] is wanted


def test_run_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", TEXT, "--q-len", "64", "--repeats", "1", "--device", "cpu", "--heads", "2"]
    for option, wanted in (("--isolate", True), ("--no-isolate", False)):
        with patch("patterncc.trial.Attention", wraps=patterncc.Attention) as attention:
            assert main([*arguments, option]) == 0
        assert attention.call_args.kwargs["isolate"] is wanted
        assert "right" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "wanted"), [([], True), (["--no-isolate"], False)])
def test_commands_take_the_environment_else(
    option: list[str], wanted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with patch("patterncc.settings.settings", _isolating):
        assert main(["explain", "causal", "--json", *option]) == 0
    assert json.loads(capsys.readouterr().out)["call"]["isolates"] is wanted
