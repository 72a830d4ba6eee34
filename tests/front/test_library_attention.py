"""Every library pattern attends as its own mask says, and has the gradients of that, with example
tables where it reads some."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import patterncc
from patterncc import example_values
from patterncc.dsl import library
from patterncc.dsl.loader import load

HEADS, KV_HEADS, LENGTH, LAYER = 4, 2, 333, 1


@pytest.mark.parametrize("name", library.names())
def test_attention_equals_dense(name: str) -> None:
    pattern = load(library.source(name).text)
    layers = example_values.USUAL_LAYERS.get(name, 4)
    sizes = {"heads": HEADS, "kv_heads": KV_HEADS, "layers": layers, "kv_len": LENGTH, "batch": 1}
    example = example_values.example(name, pattern, sizes)
    values: dict[str, Any] = {number.name: 50 for number in pattern.numbers if number.value is None}
    if example is not None:
        values |= example.numbers
        values |= {table: torch.as_tensor(given) for table, given in example.tables.items()}
    attn = patterncc.compile(name)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, HEADS, LENGTH, 32, generator=generator)
    key, value = (torch.randn(1, KV_HEADS, LENGTH, 32, generator=generator) for _ in range(2))
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    out, lse = attn(
        query,
        key,
        value,
        return_lse=True,
        layer=LAYER,
        layers=layers,
        **values,
    )
    dense, lses = [], []
    for head in range(HEADS):
        allowed = attn.mask(
            LENGTH,
            head=head,
            heads=HEADS,
            kv_heads=KV_HEADS,
            layer=LAYER,
            layers=layers,
            **values,
        )
        shared = head // (HEADS // KV_HEADS)
        scores = query[0, head].double() @ key[0, shared].double().T / 32**0.5
        scores = scores.masked_fill(~allowed, -torch.inf)
        expected = torch.nan_to_num(scores.softmax(-1)) @ value[0, shared].double()
        dense.append(expected)
        lses.append(scores.logsumexp(-1))
    wanted = torch.stack(dense)[None], torch.stack(lses)[None]
    torch.testing.assert_close(out.double(), wanted[0], atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(lse.double(), wanted[1], atol=5e-6, rtol=1e-5)
    grads = torch.randn(out.shape, generator=generator), torch.randn(lse.shape, generator=generator)
    found = torch.autograd.grad((out, lse), inputs, grads)
    for one, other in zip(found, torch.autograd.grad(wanted, inputs, grads), strict=True):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-5)
