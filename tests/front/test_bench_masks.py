"""What the benchmark tells peers of a pattern: mask functions, and bands that they know by name."""

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from patterncc.bench.band import Band, band_of
from patterncc.bench.flex import block_mask
from patterncc.bench.mask_function import mask_text, segment_tensors
from patterncc.bench.request import Request
from patterncc.bench.suites import Shape, Subject, request_of
from patterncc.call import Call
from patterncc.codegen.problem import Problem
from patterncc.dsl import library, load
from patterncc.dsl.errors import UnsupportedError
from patterncc.verdict import mask_rows


def wanted(request: Request) -> torch.Tensor:
    """`[batch, heads, q_len, kv_len]`, straight from the pattern."""
    call, rows = request.call, torch.arange(request.call.q_len)
    masks = [
        torch.stack([mask_rows(call, call.env(h, request.layer) | {"batch": b}, rows)
                     for h in range(call.heads)])
        for b in range(request.batch)
    ]  # fmt: skip
    return torch.stack(masks)


def found(request: Request) -> torch.Tensor:
    """The same from the mask function."""
    call = request.call
    text = mask_text(request)
    if text is None:
        return torch.ones(request.batch, call.heads, call.q_len, call.kv_len, dtype=torch.bool)
    tables = request.tables()
    function = text.function({**tables, **segment_tensors(text.segments, request, tables)})
    sizes = (request.batch, call.heads, call.q_len, call.kv_len)
    places = [
        torch.arange(size).view([-1 if axis == at else 1 for axis in range(4)])
        for at, size in enumerate(sizes)
    ]
    return function(places[0], places[1], places[2], places[3]).expand(sizes)


@pytest.mark.parametrize("name", library.names())
def test_mask_functions_of_the_library(name: str) -> None:
    request = request_of(Subject(name, name), Shape(2, 4, 2, 96, 16), "float32", "cpu", 0)
    try:
        mask = found(request)
    except UnsupportedError as error:
        assert "`cover`" in str(error)
        assert "cover" in request.call.pattern.text
        return
    assert torch.equal(mask, wanted(request))


@pytest.mark.parametrize(
    "text",
    [
        "not (causal or q % 3 == 1)",
        "if q % 2 == 0 then causal else k - q < 5",
        "min(q, k, 40) // 8 == max(q - 3, 2) // 8",
        "abs(q - k) * 2 < 17 - head",
        "(if head == 1 then 4 else 9) > q - k",
        "layer == 1",
        "pattern p(w: int[head], near = 3): q - k < w[head] and k - near <= q",
        "pattern p(w: int[token]): q - k < w[k - 2]",
        "pattern p(keep: bool[kv_head, *, *]): keep[kv_head, q // 8, (k - 8) // 8]",
        "pattern p(doc: segments): start(doc, k) <= q and q < end(doc, k)",
        "pattern p(doc: segments): doc[q] == doc[k] and k <= q + 2",
    ],
)
@pytest.mark.parametrize(("q_len", "kv_len"), [(40, 40), (24, 40)])
def test_mask_functions(text: str, q_len: int, kv_len: int) -> None:
    pattern = load(text)
    random = np.random.default_rng(0)
    tables = {
        "w": random.integers(0, 20, 4 if "head]" in text else 30),
        "keep": random.random((2, 5, 5)) < 0.4,
        "doc": np.array([0, 7, 7, 20, 33]),
    }
    given = {table.name: tables[table.name] for table in pattern.tables}
    call = Call.of(pattern, q_len, kv_len, heads=4, kv_heads=2, layers=2, tables=given)
    request = Request("", call, Problem("float32", 16, 16, 2), "cpu", layer=1)
    assert torch.equal(found(request), wanted(request))


def test_mask_function_reads_as_written() -> None:
    text = mask_text(request_of(Subject("", "streaming(4, 32)"), Shape(1, 2, 2, 64, 16),
                                "float32", "cpu", 0))  # fmt: skip
    assert text is not None
    assert text.text == (
        "def allowed(batch, head, row, k):\n"
        "    return ((k <= row) & ((k < 4) | ((row - k) < 32)))\n"
    )


@pytest.mark.parametrize(
    ("text", "band"),
    [
        ("full", Band(None, None)),
        ("k <= q", Band(None, 0)),
        ("window(16)", Band(15, 0)),
        ("causal and not (q - k >= 100000)", None),  # no row of a usual length ends there
        ("causal and (q - k < 16 or q - k < 9)", Band(15, 0)),
        ("around(8)", Band(8, 8)),
        ("q - k < 7", Band(6, None)),
        ("k - q < 3", Band(None, 2)),
        ("k == q", Band(0, 0)),
        ("streaming(4, 16)", None),
        ("dilated(16, 2)", None),
        ("prefix(9)", None),
        ("causal and k != 3", None),
        ("if layer == 0 then window(8) else causal", Band(None, 0)),
        ("window(8 + 8 * head)", None),
        ("pattern p(doc: segments): causal and doc[k] == doc[q]", Band(None, 0, "doc")),
        ("pattern p(doc: segments): doc[k] == doc[q]", Band(None, None, "doc")),
        ("pattern p(doc: segments): window(9) and doc[k] == doc[q]", Band(8, 0, "doc")),
        ("pattern p(doc: segments): causal or doc[k] == doc[q]", None),
        ("pattern p(doc: segments): causal and start(doc, q) <= k", None),
        ("pattern p(w: int[head]): q - k < w[head]", None),
    ],
)
def test_bands(text: str, band: Band | None) -> None:
    pattern = load(text)
    tables = {"w": np.array([3, 5]), "doc": np.array([0, 9, 64])}
    given = {table.name: tables[table.name] for table in pattern.tables}
    call = Call.of(pattern, 64, heads=2, layers=2, tables=given)
    assert band_of(call, 1) == band


@pytest.mark.parametrize("name", ["causal", "document", "duo", "bigbird", "nsa", "tree", "snapkv"])
def test_block_masks_head_by_head_are_those_of_all(name: str) -> None:
    request = request_of(Subject(name, name), Shape(2, 4, 2, 520, 16), "float32", "cpu", 0)
    text, tables = mask_text(request), request.tables()
    assert text is not None
    function = text.function({**tables, **segment_tensors(text.segments, request, tables)})
    batch = 2 if "batch" in request.call.reads else None
    heads = 4 if request.call.differs_by_head else None
    assert (heads is None) == (name in ("causal", "document", "tree"))
    found = block_mask(function, batch, heads, 520, 520, torch.device("cpu"))
    whole = create_block_mask(function, batch, heads, 520, 520, device="cpu")
    assert torch.equal(found.to_dense(), whole.to_dense())
    for part in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, part), getattr(whole, part)), part
    assert (found.shape, found.BLOCK_SIZE) == (whole.shape, whole.BLOCK_SIZE)
