"""Guards are tried when they are first needed, whatever that first call is inside of."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FIRST_CALL = """
import torch, patterncc
from torch.func import grad, vmap

attend = patterncc.compile("causal")
tensors = [torch.randn(1, 1, 8, 16) for _ in range(3)]
{}
from patterncc.guards import guards
assert guards is not None
"""

_INSIDE = {
    "a transform": "vmap(grad(lambda x: attend(x, x, x).sum()))(torch.stack(tensors))",
    "no gradients": "with torch.no_grad(): attend(*tensors)",
    "inference": "with torch.inference_mode(): attend(*tensors)",
    "autocast": "with torch.autocast('cpu', torch.bfloat16): attend(*tensors)",
    "a graph": (
        "torch.compile(lambda x: attend(x, x, x), fullgraph=True, backend='aot_eager')(tensors[0])"
    ),
    "a device": "with torch.device('meta'): attend(*tensors)",
}


@pytest.mark.parametrize("inside", _INSIDE)
def test_first_calls(inside: str) -> None:
    text = _FIRST_CALL.format(_INSIDE[inside])
    found = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
