"""Tables and packed documents at a call: the operator, torch.compile, fake mode and vmap."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

import patterncc
from patterncc import gpu_calls, prepared
from tests.front.inputs import assert_right, expected, tensors

WINDOWS = patterncc.compile("pattern p(w: int[head]): 0 <= q - k < w[head]")
PACKED = patterncc.compile(
    "pattern p(doc: segments, window: int[head], n = 4):\n"
    "    causal and doc[q] == doc[k] and (q - k < window[head] or k - start(doc, k) < n)"
)
BLOCKS = patterncc.compile("pattern p(keep: bool[head, *, *]): keep[head, q // 8, k // 8]")
IMAGES = patterncc.compile("pattern p(image: int[token]): k <= q or image[q] == image[k]")
LENGTHS = patterncc.compile("pattern p(n: int[batch]): k < n[batch]")
LAYERED = patterncc.compile("pattern p(w: int[layer, head]): 0 <= q - k < w[layer, head]")

TABLES: dict[str, tuple[patterncc.Attention, dict[str, Any]]] = {
    "windows": (WINDOWS, {"w": torch.tensor([3, 40, 3, 9])}),
    "packed": (
        PACKED,
        {
            "doc": torch.tensor([0, 7, 7, 30, 38], dtype=torch.int32),
            "window": torch.tensor([5, 6, 6, 50], dtype=torch.int32),
        },
    ),
    "blocks": (BLOCKS, {"keep": torch.arange(4 * 5 * 5).view(4, 5, 5) % 3 == 0}),
    "images": (IMAGES, {"image": torch.arange(35) // 6 % 4}),
    "lengths": (LENGTHS, {"n": torch.tensor([40, 11])}),
    "layered": (LAYERED, {"w": torch.tensor([[1, 2, 3, 4], [9, 9, 1, 40]])}),
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables_against_the_mask(case: str, dtype: torch.dtype) -> None:
    attn, tables = TABLES[case]
    inputs = tensors(dtype=dtype)
    results = attn(*inputs, return_lse=True, layer=1, **tables)
    assert_right(results, expected(attn, *inputs, layer=1, **tables), inputs[0])
    rows = (inputs[0][:, :, :9], inputs[1], inputs[2])
    results = attn(*rows, return_lse=True, layer=1, q_offset=12, **tables)
    answer = expected(attn, *rows, layer=1, q_offset=12, **tables)
    assert_right(results, answer, rows[0])


def test_a_table_may_change_between_calls() -> None:
    attn, tables = TABLES["packed"]
    inputs = tensors()
    tables = {name: table.clone() for name, table in tables.items()}
    for place in (tables["doc"][1], tables["window"]):
        place.fill_(3)
        results = attn(*inputs, return_lse=True, **tables)
        assert_right(results, expected(attn, *inputs, **tables), inputs[0])


def test_tables_of_any_strides() -> None:
    attn, tables = TABLES["blocks"]
    turned = tables["keep"].mT.contiguous().mT
    assert not turned.is_contiguous()
    inputs = tensors()
    assert torch.equal(attn(*inputs, keep=turned), attn(*inputs, **tables))


# -------------------------------------------------------------------------------------- transforms


def operands(case: str) -> tuple[Any, ...]:
    attn, tables = TABLES[case]
    listed = [tables[parameter.name] for parameter in attn.pattern.tables]
    numbers = [parameter.value for parameter in attn.pattern.numbers]
    return (*tensors(), attn.pattern.structure, listed, numbers, None, None, 1, None)


@pytest.mark.parametrize("case", TABLES)
def test_opcheck(case: str) -> None:
    torch.library.opcheck(torch.ops.patterncc.attn_fwd.default, operands(case))


def test_fake_tables_are_checked_as_far_as_they_are_known() -> None:
    *inputs, structure, listed, numbers = operands("packed")[:6]
    operator = torch.ops.patterncc.attn_fwd.default
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(tensor) for tensor in inputs]
        tables = [mode.from_tensor(table) for table in listed]
        out, _ = operator(*fakes, structure, tables, numbers)
        assert out.shape == inputs[0].shape
        with pytest.raises(patterncc.ArgumentError, match="`window` is float32"):
            operator(*fakes, structure, [tables[0], tables[1].float()], numbers)
        with pytest.raises(patterncc.ArgumentError, match="the pattern takes 2: doc, window"):
            operator(*fakes, structure, tables[:1], numbers)


def test_compiled_calls_take_other_tables_without_compiling_again() -> None:
    attn, tables = TABLES["packed"]
    counter = CompileCounter()

    def model(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        out: Tensor = attn(query * 2, key, value, **given)
        return out + 1

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    inputs = tensors()
    for doc in ([0, 7, 7, 30, 38], [0, 1, 2, 3, 40]):
        given = tables | {"doc": torch.tensor(doc, dtype=torch.int32)}
        torch.testing.assert_close(compiled(*inputs, **given), model(*inputs, **given))
    assert counter.frame_count == 1


def test_vmap_over_tables() -> None:
    inputs = tensors()
    widths = torch.tensor([[3, 40, 3, 9], [1, 2, 3, 4], [9, 9, 9, 9]])
    mapped = torch.func.vmap(lambda w: WINDOWS(*inputs, w=w))(widths)
    for index, w in enumerate(widths):
        torch.testing.assert_close(mapped[index], WINDOWS(*inputs, w=w))
    queries = torch.stack([inputs[0], inputs[0] + 1, inputs[0] + 2])
    both = torch.func.vmap(lambda q, w: WINDOWS(q, *inputs[1:], w=w), in_dims=(0, 1))
    for index, w in enumerate(widths):
        answer = WINDOWS(queries[index], *inputs[1:], w=w)
        torch.testing.assert_close(both(queries, widths.mT)[index], answer)


# ----------------------------------------------------------------------------------- other devices


def test_kernels_get_narrow_tables() -> None:
    wide = torch.arange(12).view(3, 4).mT
    narrow = gpu_calls.narrow(wide)
    assert narrow.dtype == torch.int32
    assert narrow.is_contiguous()
    assert torch.equal(narrow, wide.int())
    right = torch.arange(4, dtype=torch.int32)
    assert gpu_calls.narrow(right) is right
    assert gpu_calls.narrow(torch.ones(3).bool()).dtype == torch.bool


def test_entries_elsewhere_are_looked_at_once_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Tensor] = []
    monkeypatch.setattr(prepared, "check_entries", lambda _, tables, __: looked.extend(tables))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    call = prepared.resolve(WINDOWS.pattern.structure, 4, 4, 9, 9, 1.0, None, 0, None, ())
    table = torch.empty(4, dtype=torch.int32, device="meta")
    prepared.look_into(call, [table])
    assert not looked
    monkeypatch.setattr(prepared, "settings", lambda: type("", (), {"verify": True}))
    prepared.look_into(call, [table])
    prepared.look_into(call, [table])
    assert looked == [table]
    table.add_(1)
    prepared.look_into(call, [table])
    assert len(looked) == 2
