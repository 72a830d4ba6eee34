"""Key tiles that are gathered, on a real GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from patterncc.codegen.choice import lower_passes, tiling_names
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.launch import kernel_count
from patterncc.codegen.ir import Passes
from patterncc.dsl import load
from tests.codegen.attention import errors, expected, poisoned

pytestmark = pytest.mark.gpu

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "pattern p(v: bool[head, *]): causal and (window(9) or v[head, k])",
        {"v": [[(h + 3 * n) % 17 < h for n in range(150)] for h in range(4)]},
    ),
    (
        "pattern p(v: bool[*], s: bool[*]): causal and (v[k] or s[q - k])",
        {"v": [n % 71 < 2 for n in range(180)], "s": [n % 90 < 5 for n in range(150)]},
    ),
    (
        "pattern p(keep: bool[kv_head, *, *]): causal and keep[kv_head, q // 64, k]",
        {"keep": [[[(n * i + h) % 7 == 1 for n in range(170)] for i in range(3)] for h in (0, 1)]},
    ),
    (
        "pattern p(keep: bool[*, *]): keep[q // 64, k // 16]",
        {"keep": [[(i + j) % 3 == 0 for j in range(9)] for i in range(4)]},
    ),
    (
        "pattern p(until: int[token]): causal and q < until[k]",
        {"until": [n + (n * 37) % 100 for n in range(160)]},
    ),
)


def lowered(text: str) -> Any:
    """The alternatives of a caller, gathered."""
    pattern = load(text)

    def both(block_q: int, block_k: int) -> Sequence[Passes]:
        return [
            lower_passes(pattern, block_q, block_k, within=within, transposed=False)
            for within in (True, False)
        ]

    return both


def _tables(given: dict[str, Any]) -> dict[str, torch.Tensor]:
    tables = {name: torch.tensor(rows, device="cuda") for name, rows in given.items()}
    return {n: t if t.dtype == torch.bool else t.to(torch.int32) for n, t in tables.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("text", "given"), CASES)
def test_patterns(text: str, given: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    """Ragged lengths, grouped heads, tables that end early."""
    pattern = load(text)
    lower = lowered(text)
    assert "gathered" in tiling_names(lower(64, 64)[0])
    forward = Forward(lower, folder=tmp_path)
    like = torch.empty(0, dtype=dtype, device="cuda")
    for q_len, kv_len, offset in ((200, 200, 0), (77, 196, 119), (90, 60, 20)):
        query = poisoned((1, 4, q_len, 64), like)
        key, value = (poisoned((1, 2, kv_len, 64), like) for _ in range(2))
        env = {"q_offset": offset, "layer": 0}
        got = forward(query, key, value, env=env, scale=0.125, tables=_tables(given))
        found = errors(got, expected(pattern, query, key, value, env, 0.125, given))
        assert found.out < (3e-2 if dtype == torch.bfloat16 else 2e-5), found
        assert found.empty


def test_a_graph_gathers_anew_and_no_table_compiles(tmp_path: Path) -> None:
    """A replayed graph gathers the keys that the table names then: none, all, some."""
    text = "pattern p(v: bool[*]): causal and v[k]"
    forward = Forward(lowered(text), folder=tmp_path)
    query, key, value = (
        torch.randn(1, 2, 190, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)
    )
    table = torch.zeros(190, dtype=torch.bool, device="cuda")

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        return forward(query, key, value, env={"q_offset": 0}, scale=0.125, tables={"v": table})

    call()
    kernels = kernel_count()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    for rows in (
        [False] * 190,
        [True] * 190,
        [n % 5 == 0 for n in range(190)],
        [n == 100 for n in range(190)],
    ):
        table.copy_(torch.tensor(rows, device="cuda"))
        graph.replay()
        wanted = expected(load(text), query, key, value, {"q_offset": 0}, 0.125, {"v": rows})
        found = errors(got, wanted)
        assert found.out < 3e-2 and found.empty, found
    assert kernel_count() == kernels
