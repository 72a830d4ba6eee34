"""Gluon's forward kernels keep numbers that are not finite from rows that do not see them, by
themselves, on a real GPU: the same bits wherever nothing of it is seen. A minute and a half."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import patterncc
from patterncc.codegen.gpu.config import Peaks
from patterncc.codegen.gpu.forward import Forward
from patterncc.dsl import load
from tests.gpu.test_gluon_gpu import CONFIGS, _lowered, _tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="Gluon kernels are for compute capability 9.0",
    ),
]

PACKED = "pattern p(doc: segments): causal and doc[q] == doc[k]"
DOCUMENTS = (0, 63, 250, 250, 400, 1100)
TEXTS = (
    "causal",
    "window(300)",
    "streaming(5, 400)",
    "around(90)",
    "if head in {0, 3} then causal else streaming(4, 50)",
    "dilated(20, 5)",
    "window(100) or dilated(40, 8)",
    "k > q",
    PACKED,
)
LENGTH = 1100
KEYS = (0, 63, 64, 127, 128, 700, LENGTH - 1)

Results = tuple[Tensor, Tensor]


@functools.cache
def _mask(text: str, q_len: int) -> Tensor:
    """`[heads, q_len, kv_len]`"""
    attn = patterncc.compile(text)
    given: dict[str, Any] = {"heads": 4, "kv_heads": 2}
    if text == PACKED:
        given["doc"] = torch.tensor(DOCUMENTS, dtype=torch.int32)
    return torch.stack([attn.mask(q_len, LENGTH, head=h, **given) for h in range(4)]).cuda()


class _Call:
    """A call of one kernel, again and again.

    Attributes:
        tensors: Query, key and value, all finite.
        mask: `[heads, q_len, kv_len]`.
    """

    def __init__(
        self, text: str, shape: str, peaks: Peaks, folder: Path, *, q_len: int = LENGTH
    ) -> None:
        pattern = load(text)
        config = replace(CONFIGS[shape], peaks=peaks)
        self._forward = Forward(_lowered(pattern), config=config, folder=folder)
        self._env = {"q_offset": LENGTH - q_len, "layer": 0}
        self._tables: dict[str, Tensor] = {}
        if text == PACKED:
            self._tables["doc"] = torch.tensor(DOCUMENTS, dtype=torch.int32, device="cuda")
        head_dim = 64 if shape == "64x128" else 128
        self.tensors = _tensors(torch.bfloat16, q_len, LENGTH, head_dim, batch=1)
        self.mask = _mask(text, q_len)

    def __call__(self, *tensors: Tensor) -> Results:
        scale = float(tensors[0].shape[3] ** -0.5)
        torch.full_like(tensors[0], math.nan)  # what the output is made of next
        results: Results = self._forward(
            *tensors, env=self._env, scale=scale, tables=dict(self._tables)
        )
        return results

    def rows_that_see(self, key: int, kv_head: int) -> Tensor:
        """`[heads, q_len]`"""
        rows = torch.zeros(self.mask.shape[:2], dtype=torch.bool, device="cuda")
        rows[2 * kv_head : 2 * kv_head + 2] = self.mask[2 * kv_head : 2 * kv_head + 2, :, key]
        return rows


def _same_but(found: Results, right: Results, rows: Tensor) -> bool:
    return all(
        torch.equal(one[0][~rows], other[0][~rows]) for one, other in zip(found, right, strict=True)
    )


@pytest.mark.parametrize("peaks", ["each", "kept"])
@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("text", TEXTS)
def test_rows_that_see_nothing_wild_keep_their_bits(
    text: str, shape: str, peaks: Peaks, tmp_path: Path
) -> None:
    call = _Call(text, shape, peaks, tmp_path)
    right = call(*call.tensors)
    assert all(bool(one[0][call.mask.any(2)].isfinite().all()) for one in right)
    for key in KEYS:
        for which, number, column in ((2, math.nan, None), (1, math.inf, None), (2, -math.inf, 3)):
            wild = [tensor.clone() for tensor in call.tensors]
            wild[which][0, 1, key, slice(None) if column is None else column] = number
            found = call(*wild)
            rows = call.rows_that_see(key, 1)
            assert _same_but(found, right, rows), (key, which, number)
            if which == 2:
                columns = slice(None) if column is None else slice(column, column + 1)
                assert not bool(found[0][0][rows][:, columns].isfinite().any()), (key, number)
                assert torch.equal(found[1], right[1])
            if column is not None:
                others = [n for n in range(right[0].shape[3]) if n != column]
                assert torch.equal(found[0][..., others], right[0][..., others])


@pytest.mark.parametrize("peaks", ["each", "kept"])
@pytest.mark.parametrize("shape", CONFIGS)
def test_a_cache_whose_tail_is_garbage(shape: str, peaks: Peaks, tmp_path: Path) -> None:
    """No row sees it; the same bits, time after time."""
    call = _Call("causal", shape, peaks, tmp_path, q_len=200)
    query, key, value = call.tensors
    call._env["q_offset"] = 500
    right = call(query, key, value)
    key, value = key.clone(), value.clone()
    key[:, :, 700:], value[:, :, 700:] = math.inf, math.nan
    for _ in range(50):
        found = call(query, key, value)
        assert all(torch.equal(one, other) for one, other in zip(found, right, strict=True))


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("wild", [False, True])
def test_scores_that_outgrow_the_peak(shape: str, wild: bool, tmp_path: Path) -> None:
    """Rows that do are right, the others have the bits of their own peaks."""
    call = _Call("causal", shape, "kept", tmp_path)
    exact = _Call("causal", shape, "each", tmp_path)
    query, key, value = (tensor.clone() for tensor in call.tensors)
    large = 29.0 * (query.shape[3] / 64) ** 0.25  # scores of 105
    key[..., 0] = 0.0
    key[:, :, 420:440, 0] = large
    right = call(query, key, value)
    grown = torch.zeros(query.shape[1:3], dtype=torch.bool, device="cuda")
    grown[:, 900:910] = True
    query[:, :, 900:910, 0] = large
    if wild:
        value[:, :, 1090] = math.nan
    found, wanted = call(query, key, value), exact(query, key, value)
    rows = grown.clone()
    if wild:
        rows[:, 1090:] = True
        assert bool(found[0][:, :, 1090:].isnan().all())
    assert _same_but(found, right, rows)
    for one, other in zip(found, wanted, strict=True):
        assert float((one[0][grown] - other[0][grown]).abs().max()) < 3e-2


def test_all_is_wild(tmp_path: Path) -> None:
    for shape in CONFIGS:
        for peaks in ("each", "kept"):
            call = _Call("causal", shape, peaks, tmp_path)
            everything: list[Any] = [torch.full_like(one, math.nan) for one in call.tensors]
            assert all(bool(one.isnan().all()) for one in call(*everything))
