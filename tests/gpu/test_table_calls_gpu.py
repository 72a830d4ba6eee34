"""Tables at calls of the operator on a GPU: answers, CUDA graphs, no waiting, checks."""

from typing import Any

import pytest
import torch

import patterncc
from patterncc import prepared
from tests.front.inputs import assert_right, expected, tensors
from tests.front.test_tables import PACKED, TABLES, WINDOWS

pytestmark = pytest.mark.gpu


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tensors(head_dim=64, dtype=torch.bfloat16, device="cuda")


def on_gpu(tables: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        name: (table if table.dtype == torch.bool else table.to(dtype)).cuda()
        for name, table in tables.items()
    }


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_tables_against_the_mask(case: str, dtype: torch.dtype) -> None:
    attn, tables = TABLES[case]
    query, key, value = inputs()
    given: dict[str, Any] = on_gpu(tables, dtype)
    results = attn(query, key, value, return_lse=True, layer=1, **given)
    assert_right(results, expected(attn, query, key, value, layer=1, **tables), query)
    results = attn(query[:, :, :9], key, value, return_lse=True, layer=1, q_offset=12, **given)
    answer = expected(attn, query[:, :, :9], key, value, layer=1, q_offset=12, **tables)
    assert_right(results, answer, query)


def test_a_call_never_waits_for_the_device() -> None:
    query, key, value = inputs()
    tables: dict[str, Any] = on_gpu(TABLES["packed"][1], torch.int64)
    PACKED(query, key, value, **tables)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        PACKED(query, key, value, **tables)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_graph_is_replayed_with_other_tables(dtype: torch.dtype) -> None:
    query, key, value = inputs()
    cpu_tables: dict[str, Any] = {
        name: table.clone() for name, table in TABLES["packed"][1].items()
    }
    tables: dict[str, Any] = on_gpu(cpu_tables, dtype)
    PACKED(query, key, value, **tables)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = PACKED(query, key, value, return_lse=True, **tables)
    for bounds, width in (([0, 7, 7, 30, 38], 6), ([0, 1, 20, 21, 40], 3)):
        cpu_tables["doc"].copy_(torch.tensor(bounds))
        cpu_tables["window"].fill_(width)
        for name, table in cpu_tables.items():
            tables[name].copy_(table)
        graph.replay()
        assert_right(captured, expected(PACKED, query, key, value, **cpu_tables), query)


def test_tables_elsewhere_are_refused() -> None:
    query, key, value = inputs()
    with pytest.raises(patterncc.ArgumentError, match="`w` is on cpu; this call needs it on cuda"):
        WINDOWS(query, key, value, w=torch.ones(4, dtype=torch.int32))


def test_wrong_entries_are_named_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = inputs()
    tables: dict[str, Any] = on_gpu(TABLES["packed"][1], torch.int32)
    tables["doc"] = torch.tensor([0, 20, 10, 38], dtype=torch.int32, device="cuda")
    PACKED(query, key, value, **tables)  # not looked at, and nothing is read out of bounds
    torch.cuda.synchronize()
    monkeypatch.setattr(prepared, "settings", lambda: type("", (), {"verify": True}))
    with pytest.raises(patterncc.ArgumentError, match=r"`doc\[2\]` is 10, less than `doc\[1\]`"):
        PACKED(query, key, value, **tables)
