"""Tables and packed documents in kernels: numbers in Triton's interpreter, and the text itself."""

from __future__ import annotations

import re
from concurrent.futures import ProcessPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward_source import emit_forward
from patterncc.codegen.gpu.mask_source import emit_mask
from patterncc.codegen.gpu.separate import separate
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.evaluate import allows
from tests.codegen.interpreter import Call, attend

SMALL = KernelConfig(16, 16, 4, 1)
DESCRIPTOR = KernelConfig(16, 32, 4, 1, "descriptor")
CU = [0, 7, 7, 30, 31, 52]  # an empty document, one of one token; some positions lie after all


CALLS = (
    Call("pattern p(w: int[head]): window(w[head])", 40, 50, tables={"w": [3, 20]}),
    Call("pattern p(w: int[head]): window(w[head])", 40, 50, tables={"w": [9]}),  # too short
    Call(
        "pattern p(w: int[layer, head]): causal and k >= w[layer, head] - 3",
        33,
        40,
        {"layer": 1},
        tables={"w": [[1, 2], [30, 12], [5, 6]]},
        config=DESCRIPTOR,
    ),
    Call(
        "pattern p(retrieval: bool[kv_head]): if retrieval[kv_head] then causal else window(5)",
        40,
        40,
        heads=(4, 2),
        tables={"retrieval": [True, False]},
    ),
    Call(
        "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 8, k // 8]",
        50,
        60,
        tables={
            "keep": [[[h + i * j % 3 == 1 for j in range(6)] for i in range(7)] for h in (0, 1)]
        },
    ),
    Call(
        "pattern p(keep: bool[*]): not keep[q - k]",
        40,
        30,
        offset=-4,
        tables={"keep": [n % 3 == 0 for n in range(20)]},
    ),
    Call(
        "pattern p(image: int[token]): causal or image[q] == image[k]",
        40,
        40,
        tables={"image": [n // 9 for n in range(40)]},
    ),
    Call(
        "pattern p(rank: int[token]): rank[k] <= rank[q] and q - k < rank[k - 3]",
        40,
        44,
        tables={"rank": [n * 7 % 11 for n in range(36)]},
    ),
    Call("pattern p(doc: segments): doc[q] == doc[k]", 60, 60, tables={"doc": CU}),
    Call("pattern p(doc: segments): doc[q] == doc[k]", 40, 60, offset=-9, tables={"doc": CU}),
    Call("pattern p(doc: segments): doc[q] != doc[k] and causal", 60, 60, tables={"doc": CU}),
    Call("pattern p(doc: segments): doc[q] == doc[k] + 1", 60, 60, tables={"doc": CU}),
    Call("pattern p(doc: segments): doc[q] == doc[k]", 20, 20, tables={"doc": [0]}),
    Call(
        "pattern p(doc: segments): causal and doc[q] == doc[k]",
        60,
        60,
        config=DESCRIPTOR,
        heads=(4, 2),
        batch=2,
        dtype="float16",
        tables={"doc": CU},
    ),
    Call(
        "pattern p(doc: segments): causal and doc[q] == doc[k] and "
        "chunked(8) at (q - start(doc, q), k - start(doc, k))",
        60,
        60,
        tables={"doc": CU},
    ),
    Call(
        "pattern p(doc: segments): chunked(8) at (q - start(doc, q), k - start(doc, k))",
        60,
        60,
        tables={"doc": CU},
    ),
    Call("pattern p(doc: segments): k < end(doc, q - k)", 40, 40, tables={"doc": CU}),
    Call("pattern p(doc: segments): start(doc, kv_len - 9) <= k", 30, 50, tables={"doc": CU}),
    Call("pattern p(doc: segments): doc[q + 5] == doc[k - 2]", 60, 60, tables={"doc": CU}),
)


@pytest.mark.parametrize("every_tile", [False, True], ids=["lowered", "every tile"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.text.removeprefix("pattern p"))
def test_attention(worker: ProcessPoolExecutor, call: Call, every_tile: bool) -> None:
    config = call.config or SMALL
    _attends(worker, Call(**{**vars(call), "config": config, "every_tile": every_tile}))


def _attends(worker: ProcessPoolExecutor, call: Call) -> None:
    found = worker.submit(attend, call).result()
    assert found.out < (4e-3 if call.dtype == "float16" else 3e-6), found
    assert found.lse < 1e-5, found
    assert found.empty


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(0, 30), min_size=0, max_size=9),
    offset=st.integers(-20, 60),
    causal=st.booleans(),
)
def test_documents(
    worker: ProcessPoolExecutor, lengths: list[int], offset: int, causal: bool
) -> None:
    bounds = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    text = f"pattern p(doc: segments): doc[q] == doc[k]{' and causal' * causal}"
    call = Call(text, 30, 70, offset=offset, heads=(1, 1), config=SMALL, tables={"doc": bounds})
    _attends(worker, call)


# ------------------------------------------------------------------------------------ text

PACKED = "pattern p(doc: segments): causal and doc[q] == doc[k]"
REBASED = f"{PACKED} and (q - start(doc, q)) // 8 == (k - start(doc, k)) // 8"


def test_documents_are_looked_up_once_per_row() -> None:
    for text in (PACKED, REBASED):
        mask = emit_mask(load(text).body)
        assert sum("find_documents(" in line for line in mask.row_lines) == 1
        assert not any("find_document" in line for line in mask.key_lines)
        assert "find_document" not in mask.expression


def test_bounds_that_others_imply_are_not_asked() -> None:
    """A document ends after each of its positions, so a causal row need not ask where."""
    mask = emit_mask(load(PACKED).body)
    assert mask.expression == "((k < row_term_0) & (row_term_1_start <= k))"
    assert mask.row_lines[0] == "row_term_0 = tl.minimum(kv_len, q + 1)"


@pytest.mark.parametrize(
    ("text", "searches"),
    [
        (PACKED, ["find_document", "find_document_from", "find_documents_between"]),
        (REBASED, ["find_document", "find_documents_from"]),
    ],
)
def test_a_kernel_looks_the_ends_of_its_tile_up_once(text: str, searches: list[str]) -> None:
    """Bounds search for the first row, from there for the last; rows are sought between them."""
    program = lower(load(text), 64, 64, within=True)
    source = emit_forward(program, Problem("bfloat16", 64, 64), KernelConfig(64, 64, 4, 2))
    body = source.text[source.text.index("BLOCK_Q: tl.constexpr") :]
    assert re.findall(r"= (find_document\w*)\(", body) == searches


def test_documents_are_looked_up_per_key_where_they_must_be() -> None:
    mask = emit_mask(load("pattern p(doc: segments): start(doc, k) <= q").body)
    assert sum("find_documents(" in line for line in mask.key_lines) == 1


MEANINGS = (
    PACKED,
    REBASED,
    "pattern p(doc: segments): doc[q] != doc[k]",
    "pattern p(doc: segments): doc[q] == doc[k] and q - 2 <= k and k < q + 1",
    "pattern p(doc: segments): start(doc, q + 3) <= k and q + 3 <= k and k < end(doc, q - 1)",
    "pattern p(doc: segments): k < end(doc, q) or k <= q",
)


@pytest.mark.parametrize("text", MEANINGS)
def test_separated_documents_mean_the_same(text: str) -> None:
    body = load(text).body
    rewritten = separate(body)
    tables = {"doc": CU}
    for q in range(-3, 60):
        for k in range(60):
            assert allows(rewritten, q, k, {}, tables) == allows(body, q, k, {}, tables), (q, k)
