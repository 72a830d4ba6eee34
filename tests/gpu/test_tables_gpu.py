"""Tables and packed documents on a real GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.launch import kernel_count
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError
from tests.codegen.attention import all_partial, errors, expected, lowered, poisoned

pytestmark = pytest.mark.gpu

CU = [0, 31, 31, 130, 131, 190]  # an empty document, one of one token; positions after them all
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("pattern p(w: int[head]): window(w[head])", {"w": [3, 100, 64, 200]}),
    ("pattern p(w: int[head]): window(w[head])", {"w": [9]}),
    (
        "pattern p(retrieval: bool[kv_head]): if retrieval[kv_head] then causal else window(50)",
        {"retrieval": [True, False]},
    ),
    (
        "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 32, k // 32]",
        {"keep": [[[(h + i * j) % 3 == 1 for j in range(6)] for i in range(7)] for h in range(4)]},
    ),
    (
        "pattern p(keep: bool[batch, kv_head, *, *]): causal and keep[batch, kv_head, q, k // 32]",
        {
            "keep": [
                [
                    [[(q // 9 + j + h) % 4 == 0 for j in range(6)] for q in range(190)]
                    for h in (0, 1)
                ]
            ]
        },
    ),
    (
        "pattern p(v: bool[*], s: bool[*]): causal and (v[k] or s[q - k])",
        {"v": [n % 71 < 2 for n in range(180)], "s": [n % 90 < 5 for n in range(150)]},
    ),
    (
        "pattern p(keep: bool[*, *]): (q - k) % 12 < 5 and keep[q // 48, k // 40]",
        {"keep": [[(i + j) % 3 == 0 for j in range(6)] for i in range(4)]},
    ),
    (
        "pattern p(image: int[token]): causal or image[q] == image[k]",
        {"image": [n // 90 for n in range(195)]},
    ),
    ("pattern p(doc: segments): doc[q] == doc[k]", {"doc": CU}),
    ("pattern p(doc: segments): causal and doc[q] == doc[k]", {"doc": CU}),
    (
        "pattern p(doc: segments): causal and doc[q] == doc[k] and "
        "chunked(20) at (q - start(doc, q), k - start(doc, k))",
        {"doc": CU},
    ),
    ("pattern p(doc: segments): start(doc, k) <= q", {"doc": CU}),
)


def _tables(given: dict[str, Any]) -> dict[str, torch.Tensor]:
    tables = {name: torch.tensor(rows, device="cuda") for name, rows in given.items()}
    return {n: t if t.dtype == torch.bool else t.to(torch.int32) for n, t in tables.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("every_tile", [False, True], ids=["lowered", "every tile"])
@pytest.mark.parametrize(("text", "given"), CASES)
def test_patterns(
    text: str, given: dict[str, Any], every_tile: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    pattern = load(text)
    lower = all_partial(pattern.body) if every_tile else lowered(pattern)
    forward = Forward(lower, folder=tmp_path)
    like = torch.empty(0, dtype=dtype, device="cuda")
    for q_len, kv_len, offset in ((200, 200, 0), (77, 196, 119)):
        query = poisoned((1, 4, q_len, 64), like)
        key, value = (poisoned((1, 2, kv_len, 64), like) for _ in range(2))
        env = {"q_offset": offset, "layer": 0}
        got = forward(query, key, value, env=env, scale=0.125, tables=_tables(given))
        found = errors(got, expected(pattern, query, key, value, env, 0.125, given))
        assert found.out < (3e-2 if dtype == torch.bfloat16 else 2e-5), found
        assert found.empty


def test_values_and_sizes_compile_nothing(tmp_path: Path) -> None:
    pattern = load("pattern p(doc: segments): causal and doc[q] == doc[k]")
    forward = Forward(lowered(pattern), folder=tmp_path)
    before = kernel_count()
    query, key, value = (
        torch.randn(1, 2, 90, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)
    )
    for bounds in ([0, 90], [0, 1, 2, 90], [0], list(range(91))):
        tables = {"doc": torch.tensor(bounds, dtype=torch.int32, device="cuda")}
        env = {"q_offset": 0}
        got = forward(query, key, value, env=env, scale=0.125, tables=tables)
        wanted = expected(pattern, query, key, value, env, 0.125, {"doc": bounds})
        assert errors(got, wanted).out < 3e-2
    assert kernel_count() - before == 1


def test_wrong_tables(tmp_path: Path) -> None:
    pattern = load("pattern p(w: int[head]): window(w[head])")
    forward = Forward(lowered(pattern), folder=tmp_path)
    tensors = [torch.randn(1, 2, 90, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]

    def call(table: torch.Tensor) -> None:
        forward(*tensors, env={"q_offset": 0}, scale=1.0, tables={"w": table})

    with pytest.raises(ConfigError, match=r"the table w is torch\.int64"):
        call(torch.tensor([3, 4], device="cuda"))
    with pytest.raises(ConfigError, match="the table w is on cpu"):
        call(torch.tensor([3, 4], dtype=torch.int32))
    with pytest.raises(ConfigError, match="with strides"):
        call(torch.zeros(4, dtype=torch.int32, device="cuda")[::2])
    with pytest.raises(ConfigError, match="has 2 axes"):
        call(torch.zeros((1, 2), dtype=torch.int32, device="cuda"))


def test_a_graph_lists_tiles_anew(tmp_path: Path) -> None:
    """A replayed graph visits the tiles that the table names then."""
    pattern = load("pattern p(keep: bool[*, *]): keep[q // 48, k // 32]")
    forward = Forward(lowered(pattern), folder=tmp_path)
    query, key, value = (
        torch.randn(1, 2, 190, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)
    )
    rows = [[[(i + j + n) % 3 == 0 for j in range(6)] for i in range(4)] for n in (0, 1)]
    table = torch.tensor(rows[0], device="cuda")

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        return forward(query, key, value, env={"q_offset": 0}, scale=0.125, tables={"keep": table})

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    for given in (rows[1], rows[0]):
        table.copy_(torch.tensor(given))
        graph.replay()
        torch.cuda.synchronize()
        wanted = expected(pattern, query, key, value, {"q_offset": 0}, 0.125, {"keep": given})
        found = errors(got, wanted)
        assert found.out < 3e-2, found
        assert found.empty
