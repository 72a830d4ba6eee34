"""The torch operator of the forward pass: schema, fake implementation, transforms, autocast."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import patterncc
import patterncc.ops  # gives the operators their derivatives
from patterncc import UnsupportedError, operators
from tests.front.inputs import assert_right, expected, tensors

CAUSAL = patterncc.compile("causal")
WINDOW = patterncc.compile("pattern window(n = 8): 0 <= q - k < n")
BATCHED = patterncc.compile("if batch == 1 then causal else window(3)")


def arguments(**options: Any) -> tuple[Any, ...]:
    """Arguments of the operator itself."""
    layout = options.pop("layout", "heads first")
    query, key, value = tensors(**options)
    if layout == "length first":
        query, key, value = (
            tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key, value)
        )
    return (query, key, value, WINDOW.pattern.structure, [], [8], None, None, 0, None)


CASES: list[dict[str, Any]] = [
    {},
    {"layout": "length first"},
    {"q_len": 3, "kv_len": 17},
    {"kv_heads": 1},
    {"kv_heads": 4, "value_head_dim": 8},
    {"dtype": torch.bfloat16},
    {"dtype": torch.float64},
    {"q_len": 0},
    {"q_len": 4, "kv_len": 0},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(case: dict[str, Any]) -> None:
    operator = torch.ops.patterncc.attn_fwd.default
    torch.library.opcheck(operator, arguments(**case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_fake_result_has_the_real_layout(case: dict[str, Any]) -> None:
    inputs = arguments(**case)
    real = torch.ops.patterncc.attn_fwd.default(*inputs)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in inputs[:3]]
        fake = torch.ops.patterncc.attn_fwd.default(*fakes, *inputs[3:])
    for one, other in zip(real, fake, strict=True):
        assert one.shape == other.shape
        assert one.stride() == other.stride()
        assert one.dtype == other.dtype


def test_meta_tensors() -> None:
    query, key, value = (tensor.to("meta") for tensor in tensors(value_head_dim=8))
    out, lse = CAUSAL(query, key, value, return_lse=True)
    assert out.is_meta
    assert out.shape == (2, 4, 40, 8)
    assert lse.dtype == torch.float32


def test_the_operator_checks_for_itself() -> None:
    operator = torch.ops.patterncc.attn_fwd.default
    query, key, value, structure, *rest = arguments()
    with pytest.raises(
        patterncc.ArgumentError, match="`numbers` has 2 values; the pattern takes 1: n"
    ):
        operator(query, key, value, structure, [], [8, 8], None, None, 0, None)
    with pytest.raises(patterncc.ArgumentError, match="`value` has length 40 but `key` has 3"):
        operator(query, key[:, :, :3], value, structure, *rest)
    with pytest.raises(patterncc.PatternError, match="casual"):
        operator(query, key, value, "casual", [], [], None, None, 0, None)


# --------------------------------------------------------------------------------------------- vmap


@pytest.mark.parametrize("attn", [WINDOW, BATCHED], ids=["folded", "reads batch"])
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (2, 1, 0), (None, 0, 3)])
def test_vmap(attn: patterncc.Attention, in_dims: tuple[int | None, ...]) -> None:
    inputs, slices = [], []
    for tensor, dim in zip(tensors(12), in_dims, strict=True):
        copies = [tensor] * 3 if dim is None else [tensor + i for i in range(3)]
        slices.append(copies)
        inputs.append(tensor if dim is None else torch.stack(copies, dim))
    mapped = torch.func.vmap(lambda *parts: attn(*parts, return_lse=True), in_dims=in_dims)(*inputs)
    for index, one in enumerate(zip(*slices, strict=True)):
        out, lse = attn(*one, return_lse=True)
        torch.testing.assert_close(mapped[0][index], out)
        torch.testing.assert_close(mapped[1][index], lse)


def test_vmap_in_vmap() -> None:
    query, key, value = (torch.stack([torch.stack([tensor] * 2)] * 3) for tensor in tensors(12))
    out = torch.func.vmap(torch.func.vmap(WINDOW))(query, key, value)
    torch.testing.assert_close(out[2, 1], WINDOW(*tensors(12)))


# ----------------------------------------------------------------------------------------- autocast


def test_autocast_does_what_it_does_to_sdpa() -> None:
    query, key, value = tensors(kv_heads=4)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    mixed = [(query, key, value), (query.bfloat16(), key, value.half()), (query, key.half(), value)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for inputs in mixed:
            out = CAUSAL(*inputs)
            assert out.dtype == sdpa(*inputs).dtype == torch.bfloat16
            assert torch.equal(out, CAUSAL(*(tensor.bfloat16() for tensor in inputs)))
    assert CAUSAL(query, key, value).dtype == torch.float32


def test_autocast_leaves_float64_alone() -> None:
    inputs = tensors(kv_heads=4, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CAUSAL(*inputs).dtype == torch.float64
        with pytest.raises(
            patterncc.ArgumentError, match="`key` is bfloat16 but `query` is float64"
        ):
            CAUSAL(inputs[0], inputs[1].float(), inputs[2])


# --------------------------------------------------------------------------------------------- rest


def test_a_device_without_executor_is_refused() -> None:
    # What the dispatcher calls for devices that have no kernel of their own.
    query, key, value = tensors()
    with pytest.raises(UnsupportedError, match=r"are on cpu, which has no .*\n.*one of: cpu, cuda"):
        operators.elsewhere(query, key, value, "true")
    for name in ("attn_fwd", "attn_bwd", "attn_bwd_bwd"):
        assert "CompositeExplicitAutograd" in torch._C._dispatch_dump(f"patterncc::{name}")


def test_threads_share_the_caches() -> None:
    from concurrent.futures import ThreadPoolExecutor

    attn = patterncc.compile("0 <= q - k < 77")
    query, key, value = tensors(90)
    with ThreadPoolExecutor(4) as pool:
        results = [
            future.result()
            for future in [pool.submit(attn, query, key, value, return_lse=True) for _ in range(8)]
        ]
    for result in results:
        assert_right(result, expected(attn, query, key, value), query)
