"""Gradients of attention through the public interface, against autograd through dense attention in
float64."""

import math
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

import patterncc
from patterncc import PatternError, UnsupportedError
from tests.front.inputs import assert_right_gradients, expected_gradients, tensors

Inputs = tuple[Tensor, Tensor, Tensor]

WINDOW = patterncc.compile("window(8)")
STREAMING = patterncc.compile("causal and (window(9) or sinks(3))")


def leaves(*arguments: Any, **options: Any) -> Inputs:
    """Query, key and value that need gradients."""
    query, key, value = tensors(*arguments, **options)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def draw(like: Tensor, seed: int = 7) -> Tensor:
    """Random numbers of a shape and type."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like.dtype)


def check(attn: patterncc.Attention, inputs: Inputs, *, lse: bool = True, **arguments: Any) -> None:
    """Compares the gradients of a call with the oracle's, from random ones of its results."""
    results = attn(*inputs, return_lse=True, **arguments)
    grads = [draw(results[0], 7), draw(results[1], 8)]
    count = 2 if lse else 1
    found = torch.autograd.grad(results[:count], inputs, grads[:count])
    answers = expected_gradients(attn, inputs, *grads[:count], **arguments)
    assert_right_gradients(found, answers, inputs)


# ------------------------------------------------------------------------------------------- values

TEXTS = {
    "causal": "causal",
    "streaming": "causal and (window(9) or sinks(3))",
    "full": "full",
    "dilated": "dilated(4, 3)",
    "union of strides": "causal and (window(4) or (q - k) % 5 == 0)",
    "key stride": "causal and k % 4 == 1",
    "ladder": "causal and (k < 2 or q - k < 5 or (k // 4 + layer) % 3 == 0)",
    "heads": "if head % 2 == 0 then causal else window(5)",
    "batch": "if batch == 1 then causal else window(3)",
    "dead rows": "k > q + 3 or q % 7 == 2 and k == 0",
    "no pair": "k > q + 1000",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_patterns(text: str) -> None:
    check(patterncc.compile(text), leaves(43), layer=1)


SHAPES: dict[str, dict[str, Any]] = {
    "one key head": {"kv_heads": 1},
    "no sharing": {"kv_heads": 4},
    "values of another size": {"value_head_dim": 24},
    "small values": {"value_head_dim": 5},
    "odd head": {"head_dim": 7},
    "one row": {"q_len": 1, "kv_len": 30},
    "fewer rows": {"q_len": 9, "kv_len": 30},
    "more rows": {"q_len": 30, "kv_len": 9},
    "long": {"q_len": 200, "batch": 1, "heads": 2, "kv_heads": 1},
}


@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_shapes(case: dict[str, Any]) -> None:
    check(STREAMING, leaves(**{"q_len": 40, **case}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types(dtype: torch.dtype) -> None:
    check(STREAMING, leaves(dtype=dtype))


@pytest.mark.parametrize("arguments", [{"scale": 0.7}, {"scale": -0.3}, {"q_offset": 3}])
def test_arguments(arguments: dict[str, Any]) -> None:
    check(STREAMING, leaves(20, 40), **arguments)


def test_offsets_beyond_the_keys() -> None:
    inputs = leaves(20, 40)
    for q_offset in (-15, 38, 1000):
        check(STREAMING, inputs, q_offset=q_offset)


@pytest.mark.parametrize("which", ["out", "lse"])
def test_each_result_alone(which: str) -> None:
    inputs = leaves()
    results = STREAMING(*inputs, return_lse=True)
    out, lse = results
    if which == "out":
        found = torch.autograd.grad(out, inputs, draw(out))
        answers = expected_gradients(STREAMING, inputs, draw(out))
    else:
        found = torch.autograd.grad(lse, inputs, draw(lse))
        answers = expected_gradients(STREAMING, inputs, torch.zeros_like(out), draw(lse))
    assert_right_gradients(found, answers, inputs)


def test_the_gradient_of_the_lse_of_rows_without_keys_goes_nowhere() -> None:
    attn = patterncc.compile("q % 2 == 0 and k < q")
    inputs = leaves()
    _, lse = attn(*inputs, return_lse=True)
    grads = torch.autograd.grad(lse, inputs, torch.ones_like(lse))
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert bool((grads[0][:, :, 1::2] == 0).all())


# The report is https://github.com/pytorch/pytorch/issues/158212: a mask of positions that leave one
# remainder, for which FlexAttention returns wrong gradients, or NaN.
@pytest.mark.parametrize("step", [2, 3, 7, 16, 64])
@pytest.mark.parametrize("text", ["(q - k) % {} == 0", "causal and (q - k) % {} == 0"])
@pytest.mark.parametrize("length", [128, 150])
def test_modular_masks(text: str, step: int, length: int) -> None:
    inputs = leaves(length, batch=1, heads=2, kv_heads=1)
    check(patterncc.compile(text.format(step)), inputs)


TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "windows of heads": (
        "pattern p(w: int[head]): 0 <= q - k < w[head]",
        {"w": torch.tensor([3, 40, 3, 9])},
    ),
    "packed documents": (
        "pattern p(doc: segments): causal and doc[q] == doc[k]",
        {"doc": torch.tensor([0, 7, 7, 30, 38], dtype=torch.int32)},
    ),
    "listed blocks": (
        "pattern p(keep: bool[head, *, *]): keep[head, q // 8, k // 8]",
        {"keep": torch.arange(4 * 5 * 5).view(4, 5, 5) % 3 == 0},
    ),
    "images": (
        "pattern p(image: int[token]): k <= q or image[q] == image[k]",
        {"image": torch.arange(40) // 6 % 4},
    ),
    "lengths": ("pattern p(n: int[batch]): k < n[batch]", {"n": torch.tensor([40, 0])}),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(case: str) -> None:
    text, tables = TABLES[case]
    check(patterncc.compile(text), leaves(), **tables)


def test_packed_documents_do_not_touch() -> None:
    attn = patterncc.compile("pattern p(doc: segments): causal and doc[q] == doc[k]")
    doc = torch.tensor([0, 13, 40], dtype=torch.int32)
    whole = leaves()
    torch.autograd.backward(attn(*whole, doc=doc)[:, :, :13].sum())
    alone = leaves()
    query, key, value = (tensor[:, :, :13] for tensor in alone)
    torch.autograd.backward(patterncc.attention(query, key, value, "causal").sum())
    for one, other in zip(whole, alone, strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad)
        assert bool((one.grad[:, :, 13:] == 0).all())


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Patterns of windows, strides, blocks, sinks, documents, and conditions on heads."""
    n = draw(st.integers(1, 12))
    s = draw(st.integers(2, 6))
    atom = st.sampled_from(
        [
            "causal",
            f"window({n})",
            f"sinks({n})",
            f"(q - k) % {s} == 0",
            f"k % {s} == {s - 1}",
            f"q // {n} == k // {n}",
            f"abs(q - k) < {n}",
            f"q >= {n}",
            f"(k // {n} + layer) % {s} == 0",
            f"head % {s} == 0",
            "batch == 0",
            "doc[q] == doc[k]",
            "0 <= q - k < w[head]",
        ]
    )
    extend = st.sampled_from(["{} and {}", "{} or {}", "{} and not {}", "if {2} then {0} else {1}"])
    text = draw(atom)
    for _ in range(draw(st.integers(0, 3))):
        text = draw(extend).format(f"({text})", f"({draw(atom)})", f"({draw(atom)})")
    return f"pattern p(doc: segments, w: int[head]): {text}"


@given(
    texts(),
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(-10, 40),
    st.sampled_from([1, 2, 4]),
)
@settings(max_examples=40)
def test_drawn_patterns(text: str, q_len: int, kv_len: int, q_offset: int, kv_heads: int) -> None:
    try:
        attn = patterncc.compile(text)
    except PatternError:
        event("no pattern")  # such as one that no pair satisfies
        return
    inputs = leaves(q_len, kv_len, kv_heads=kv_heads, head_dim=8, dtype=torch.float64)
    bounds = [0, kv_len // 3, kv_len // 3, kv_len // 2, kv_len]
    tables = {"doc": torch.tensor(bounds), "w": torch.tensor([q_len, 0, 5, kv_len])}
    given: dict[str, Any] = {table.name: tables[table.name] for table in attn.pattern.tables}
    try:
        check(attn, inputs, q_offset=q_offset, layer=2, **given)
    except UnsupportedError:
        event("not lowered")


# ------------------------------------------------------------------------------ gradients that come


def test_an_expanded_gradient() -> None:
    inputs = leaves()
    out = STREAMING(*inputs)
    torch.autograd.backward(out.sum())
    answers = expected_gradients(STREAMING, inputs, torch.ones_like(out))
    assert_right_gradients([tensor.grad for tensor in inputs], answers, inputs)


@pytest.mark.parametrize(
    "case", ["length first", "turned", "every other", "one number", "reversed"]
)
def test_gradients_of_any_strides(case: str) -> None:
    inputs = leaves()
    out, lse = STREAMING(*inputs, return_lse=True)
    grad, grad_lse = draw(out), draw(lse)
    if case == "length first":
        grad = grad.transpose(1, 2).contiguous().transpose(1, 2)
        grad_lse = grad_lse.mT.contiguous().mT
    elif case == "turned":
        grad = grad.mT.contiguous().mT
    elif case == "every other":
        grad = torch.stack([grad, torch.full_like(grad, math.nan)], -1).flatten(-2)[..., ::2]
        grad_lse = torch.stack([grad_lse, grad_lse], -1)[..., 0]
    elif case == "one number":
        grad, grad_lse = (grad[:1, :1, :1, :1].expand_as(grad), grad_lse[:, :, :1].expand_as(lse))
    else:
        grad = torch.cat([grad.new_full((3,), math.nan), grad.flatten()])[3:].view_as(grad)
    found = torch.autograd.grad((out, lse), inputs, (grad, grad_lse))
    answers = expected_gradients(STREAMING, inputs, grad, grad_lse)
    assert_right_gradients(found, answers, inputs)


def test_inputs_of_any_strides() -> None:
    plain = leaves(kv_heads=4)
    packed = torch.stack([tensor.detach().transpose(1, 2) for tensor in plain], 2).requires_grad_()
    query, key, value = (packed[:, :, index].transpose(1, 2) for index in range(3))
    grad = draw(plain[0])
    torch.autograd.backward(STREAMING(query, key, value), grad)
    answers = expected_gradients(STREAMING, plain, grad)
    assert packed.grad is not None
    found = [packed.grad[:, :, index].transpose(1, 2) for index in range(3)]
    assert_right_gradients(found, answers, plain)


def test_one_tensor_as_all_three() -> None:
    state = tensors(kv_heads=4)[0].requires_grad_()
    grad = draw(state)
    torch.autograd.backward(STREAMING(state, state, state), grad)
    answers = expected_gradients(STREAMING, (state, state, state), grad)
    assert state.grad is not None
    torch.testing.assert_close(state.grad.double(), sum(answers), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("q_len", "kv_len", "batch"), [(0, 9, 2), (9, 0, 2), (0, 0, 2), (9, 9, 0)])
def test_nothing_to_do(q_len: int, kv_len: int, batch: int) -> None:
    inputs = leaves(q_len, kv_len, batch=batch)
    out, lse = WINDOW(*inputs, return_lse=True)
    torch.autograd.backward((out, lse), (torch.ones_like(out), torch.ones_like(lse)))
    for tensor in inputs:
        assert tensor.grad is not None and tensor.grad.shape == tensor.shape
        assert bool((tensor.grad == 0).all())


# ----------------------------------------------------------------------------------- wild numbers


@pytest.mark.parametrize("wild", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["query", "key", "value", "grad_out"])
def test_a_wild_number_reaches_only_what_sees_it(which: str, wild: float) -> None:
    # A row passes a wild number on to all that it sees, and to nothing else.
    attn = patterncc.compile("window(4)")
    inputs = leaves(40, batch=1, heads=2, kv_heads=2)
    grad = draw(inputs[0])
    right = torch.autograd.grad(attn(*inputs), inputs, grad)
    place = 20
    query, key, value = (tensor.detach().clone() for tensor in inputs)
    grad = grad.clone()
    {"query": query, "key": key, "value": value, "grad_out": grad}[which][0, 1, place, 3] = wild
    spoiled = (query.requires_grad_(), key.requires_grad_(), value.requires_grad_())
    found = torch.autograd.grad(attn(*spoiled), spoiled, grad)
    rows = range(place, place + 4) if which in ("key", "value") else range(place, place + 1)
    keys = range(rows[0] - 3, rows[-1] + 1)
    for one, other, reached in zip(found, right, (rows, keys, keys), strict=True):
        touched = torch.zeros(2, 40, dtype=torch.bool)
        touched[1, list(reached)] = True
        torch.testing.assert_close(one[0][~touched], other[0][~touched])
    everything = torch.cat([grad.flatten() for grad in found])
    assert not bool(everything.isfinite().all())


# ------------------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize("needed", range(1, 8))
def test_only_the_gradients_that_are_needed(needed: int) -> None:
    inputs = tensors()
    for index, tensor in enumerate(inputs):
        tensor.requires_grad_(bool(needed >> index & 1))
    out = STREAMING(*inputs)
    grad = draw(out)
    returned: list[tuple[Tensor | None, ...]] = []
    assert out.grad_fn is not None
    out.grad_fn.register_hook(lambda grads, _: returned.append(grads))
    torch.autograd.backward(out, grad)
    answers = expected_gradients(STREAMING, inputs, grad)
    for index, (tensor, answer) in enumerate(zip(inputs, answers, strict=True)):
        if needed >> index & 1:
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad.double(), answer, rtol=0, atol=1e-4)
        else:
            assert tensor.grad is None and returned[0][index] is None


def test_a_float_table_is_refused() -> None:
    attn = patterncc.compile("pattern p(w: int[head]): 0 <= q - k < w[head]")
    table = torch.tensor([3.0, 40.0, 3.0, 9.0], requires_grad=True)
    with pytest.raises(patterncc.ArgumentError, match=r"`w` is float32; .* a table of int, int32"):
        attn(*leaves(), w=table)


def test_what_the_operator_is_given() -> None:
    query, key, value = tensors()
    out, lse = WINDOW(query, key, value, return_lse=True)
    rest: tuple[Any, ...] = (WINDOW.pattern.structure, [], [], None, None, 0, None)
    operator = torch.ops.patterncc.attn_bwd.default
    wrong: list[tuple[tuple[Tensor, ...], str]] = [
        (
            (out[:, :, 1:], lse, out, lse),
            r"`grad_out` has shape \[2, 4, 39, 16\]; this call has \[",
        ),
        ((out.double(), lse, out, lse), "`grad_out` is float64; this call needs float32"),
        ((out, lse[..., None], out, lse), r"`grad_lse` has shape \[2, 4, 40, 1\]"),
        ((out, lse, out[:1], lse), r"`out` has shape \[1, 4, 40, 16\]"),
        ((out, lse, out, lse.double()), "`lse` is float64; this call needs float32"),
        ((out, lse, out.to("meta"), lse), "`out` is on meta but `query` is on cpu"),
    ]
    for (grad_out, grad_lse, given_out, given_lse), message in wrong:
        with pytest.raises(patterncc.ArgumentError, match=message):
            operator(grad_out, grad_lse, query, key, value, given_out, given_lse, *rest)
