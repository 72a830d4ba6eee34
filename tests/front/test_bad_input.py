"""What a wrong argument gets: one sentence that names it, what it got and what it wants."""

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import patterncc
from patterncc import ArgumentError, PatternccError, UnsupportedError
from tests.front.inputs import assert_right, expected, tensors

STREAMING = "pattern streaming(sinks = 4, window = 16): causal and (k < sinks or q - k < window)"
NEEDS = "pattern needs(n): 0 <= q - k < n + 1"


def refused(message: str, error: type[PatternccError] = ArgumentError) -> Any:
    return pytest.raises(error, match=message)


def call(**replace: Any) -> Any:
    """A right call with some of its arguments replaced."""
    query, key, value = tensors()
    arguments: dict[str, Any] = {"query": query, "key": key, "value": value} | replace
    return patterncc.compile(STREAMING)(**arguments)


def test_the_call_that_the_others_change_is_right() -> None:
    assert call().shape == (2, 4, 40, 16)


def test_an_argument_error_is_a_value_error() -> None:
    assert issubclass(ArgumentError, PatternccError)
    assert issubclass(ArgumentError, ValueError)


# ----------------------------------------------------------------------------------------- tensors

TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "not a tensor": ({"key": np.zeros((2, 2, 40, 16))}, "`key` is ndarray; it must be a tensor"),
    "none": ({"value": None}, "`value` is NoneType; it must be a tensor"),
    "rank": (
        {"query": torch.zeros(4, 40, 16)},
        r"`query` has 3 axes, \[4, 40, 16\]; it needs 4, \[batch, heads, length, head_dim\]",
    ),
    "rank of value": ({"value": torch.zeros(1, 2, 4, 40, 16)}, "`value` has 5 axes"),
    "batch": (
        {"key": torch.zeros(3, 2, 40, 16)},
        "`key` has batch 3 but `query` has 2; they must be equal",
    ),
    "batch of value": (
        {"value": torch.zeros(3, 2, 40, 16)},
        "`value` has batch 3 but `key` has 2; they must be equal",
    ),
    "heads": (
        {"value": torch.zeros(2, 4, 40, 16)},
        "`value` has heads 4 but `key` has 2; they must be equal",
    ),
    "length": (
        {"value": torch.zeros(2, 2, 41, 16)},
        "`value` has length 41 but `key` has 40; they must be equal",
    ),
    "head_dim": (
        {"key": torch.zeros(2, 2, 40, 8)},
        "`key` has head_dim 8 but `query` has 16; they must be equal",
    ),
    "heads not divisible": (
        {"key": torch.zeros(2, 3, 40, 16), "value": torch.zeros(2, 3, 40, 16)},
        "`query` has 4 heads and `key` has 3; the first must be a multiple of the second",
    ),
    "no heads": ({"query": torch.zeros(2, 0, 40, 16)}, r"`query` has heads 0, \[2, 0, 40, 16\]"),
    "no head_dim": ({"query": torch.zeros(2, 4, 40, 0)}, "`query` has head_dim 0"),
    "dtype": (
        {"key": torch.zeros(2, 2, 40, 16).half()},
        "`key` is float16 but `query` is float32; all three need one dtype",
    ),
    "device": (
        {"key": torch.zeros(2, 2, 40, 16, device="meta")},
        "`key` is on meta but `query` is on cpu; all three need one device",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(case: str) -> None:
    replace, message = TENSORS[case]
    with refused(message):
        call(**replace)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn, torch.complex64])
def test_a_dtype_without_kernel(dtype: torch.dtype) -> None:
    query, key, value = (torch.zeros(1, 1, 4, 16).to(dtype) for _ in range(3))
    message = f"`query` is {str(dtype)[6:]}, which has no kernel\n.*use float16, bfloat16, float32"
    with refused(message, UnsupportedError):
        call(query=query, key=key, value=value)


# --------------------------------------------------------------------- tensors that must work


@pytest.mark.parametrize(
    ("q_len", "kv_len", "batch"), [(0, 40, 2), (40, 0, 2), (0, 0, 2), (40, 40, 0)]
)
def test_nothing_to_do(q_len: int, kv_len: int, batch: int) -> None:
    query, key, value = tensors(q_len, kv_len, batch=batch, value_head_dim=8)
    out, lse = patterncc.compile(STREAMING)(query, key, value, return_lse=True)
    assert out.shape == (batch, 4, q_len, 8)
    assert lse.shape == (batch, 4, q_len)
    assert bool((out == 0).all())
    assert bool((lse == -math.inf).all())


def layouts() -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    query, key, value = tensors(heads=4, kv_heads=4)
    packed = torch.randn(2, 40, 3, 4, 16).permute(2, 0, 3, 1, 4)
    return {
        "length before heads": tuple(  # type: ignore[dict-item]
            tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key, value)
        ),
        "packed": (packed[0], packed[1], packed[2]),
        "expanded heads": (query, key[:, :1].expand(-1, 4, -1, -1), value),
        "expanded batch": (query[:1].expand(2, -1, -1, -1), key, value),
        "expanded length": (query[:, :, :1].expand(-1, -1, 40, -1), key, value),
        "every second column": tuple(  # type: ignore[dict-item]
            tensor.repeat_interleave(2, -1)[..., ::2] for tensor in (query, key, value)
        ),
        "head_dim first": tuple(  # type: ignore[dict-item]
            tensor.mT.contiguous().mT for tensor in (query, key, value)
        ),
        "odd start": tuple(  # type: ignore[dict-item]
            torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view_as(tensor)
            for tensor in (query, key, value)
        ),
    }


@pytest.mark.parametrize("layout", layouts())
def test_strides_are_free(layout: str) -> None:
    query, key, value = layouts()[layout]
    attn = patterncc.compile(STREAMING)
    results = attn(query, key, value, return_lse=True)
    assert_right(results, expected(attn, query, key, value), query)


# ----------------------------------------------------------------------------------------- numbers

NUMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "scale nan": ({"scale": math.nan}, "`scale` is nan; it must be finite"),
    "scale inf": ({"scale": -math.inf}, "`scale` is -inf; it must be finite"),
    "scale text": ({"scale": "0.1"}, "`scale` is str '0.1'; it must be a number"),
    "scale bool": ({"scale": True}, "`scale` is bool True; it must be a number"),
    "scale tensor": ({"scale": torch.ones(())}, r"`scale` is a tensor of shape \[\]"),
    "offset float": ({"q_offset": 1.0}, "`q_offset` is float 1.0; it must be an integer"),
    "offset large": ({"q_offset": 2**31}, f"`q_offset` is {2**31}; it must be in -{2**30}"),
    "layer bool": ({"layer": True}, "`layer` is bool True; it must be an integer"),
    "layer negative": ({"layer": -1}, "`layer` is -1; it must be in 0 .. "),
    "layer none": ({"layer": None}, "`layer` is None; it must be an integer"),
    "layers zero": ({"layers": 0}, "`layers` is 0; it must be in 1 .. "),
    "layer too high": ({"layer": 4, "layers": 4}, "`layer` is 4; it must be below `layers`"),
    "window float": ({"window": 2.0}, "`window` is float 2.0; it must be an integer"),
    "window bool": ({"window": False}, "`window` is bool False; it must be an integer"),
    "window text": ({"window": "16"}, "`window` is str '16'; it must be an integer"),
    "window tensor": ({"window": torch.tensor(16)}, r"`window` is a tensor of shape \[\]; it must"),
    "window large": ({"window": 2**30 + 1}, f"`window` is {2**30 + 1}; it must be in -{2**30}"),
    "unknown": (
        {"windw": 8},
        "`windw` is not a parameter of the pattern, which takes `sinks`, `window`",
    ),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers(case: str) -> None:
    replace, message = NUMBERS[case]
    with refused(message):
        call(**replace)


def test_integers_of_numpy_are_integers() -> None:
    assert torch.equal(call(window=np.int64(8), layer=np.int32(1)), call(window=8))


def test_a_parameter_without_default() -> None:
    attn = patterncc.compile(NEEDS)
    query, key, value = tensors()
    message = "`n` was not given and has no default; the pattern needs it at every call"
    with refused(message):
        attn(query, key, value)
    with refused(message):
        attn.mask(40)
    with refused(message):
        attn.block_map(40)
    assert attn(query, key, value, n=3).shape == query.shape


def test_a_fixed_parameter_cannot_be_given_at_a_call() -> None:
    attn = patterncc.compile("pattern p(size = 8): q // size == k // size")
    query, key, value = tensors()
    with refused("`size` is fixed when the pattern is compiled, .*compile the pattern with size="):
        attn(query, key, value, size=16)


def test_a_pattern_that_reads_layers_needs_them() -> None:
    attn = patterncc.compile("q - k < 4 * (layers - layer)")
    query, key, value = tensors()
    with refused("`layers` was not given; the pattern reads the number of layers"):
        attn(query, key, value)
    with refused("`layers` was not given; the pattern reads the number of layers"):
        attn.mask(40)
    assert attn(query, key, value, layers=2).shape == query.shape


def test_no_parameter_can_hide_an_argument() -> None:
    names = {"source", "name", "file"}
    for method in ("__call__", "mask", "block_map"):
        parameters = inspect.signature(getattr(patterncc.Attention, method)).parameters
        names |= {name for name in parameters if name not in ("self", "values")}
    for name in names:
        with pytest.raises(patterncc.PatternError, match=f"`{name}`"):
            patterncc.compile(f"pattern p({name}): q - k < {name}")
    assert patterncc.compile("pattern p(self): 0 <= q - k < self").mask(9, self=2).sum() == 17


# ------------------------------------------------------------------------------- mask and block_map

SIZES: dict[str, tuple[dict[str, Any], str]] = {
    "q_len": ({"q_len": -1}, "`q_len` is -1; it must be in 0 .. "),
    "q_len float": ({"q_len": 4.0}, "`q_len` is float 4.0; it must be an integer"),
    "kv_len": ({"kv_len": -1}, "`kv_len` is -1"),
    "head": ({"head": 4, "heads": 4}, r"`head` is 4; it must be in 0 \.\. 3"),
    "heads": ({"heads": 4, "kv_heads": 3}, "`heads` is 4 and `kv_heads` 3; the first must be"),
    "kv_heads alone": ({"kv_heads": 2}, "`heads` was not given but `kv_heads` was"),
    "layer": ({"layer": 2, "layers": 2}, r"`layer` is 2; it must be in 0 \.\. 1"),
    "batch": ({"batch": -1}, "`batch` is -1"),
    "unknown": ({"windows": 3}, "`windows` is not a parameter of the pattern"),
}


@pytest.mark.parametrize("method", ["mask", "block_map"])
@pytest.mark.parametrize("case", SIZES)
def test_sizes(case: str, method: str) -> None:
    replace, message = SIZES[case]
    with refused(message):
        getattr(patterncc.compile(STREAMING), method)(**({"q_len": 40} | replace))


def test_a_tile_has_a_size() -> None:
    with refused("`block_q` is 0; it must be in 1 .. "):
        patterncc.compile("causal").block_map(40, block_q=0)


def test_a_pattern_that_reads_heads_needs_them() -> None:
    for text in ("kv_head == 0", "head < heads // 2", "head < kv_heads"):
        with refused("`heads` was not given; the pattern reads the number of heads"):
            patterncc.compile(text).mask(8)


# ------------------------------------------------------------------------------------------ tables

TABLE = "pattern p(w: int[head]): 0 <= q - k < w[head]"
LAYERS = "pattern p(w: int[layer, head]): 0 <= q - k < w[layer, head]"
MEMBER = "pattern p(keep: bool[head, *, *]): keep[head, q // 4, k // 4]"
PACKED = "pattern p(doc: segments): doc[q] == doc[k] and k <= q"

TABLES: dict[str, tuple[str, Any, str]] = {
    "missing": (TABLE, None, "`w` is None; the pattern needs a tensor"),
    "list": (TABLE, [1, 2], r"`w` is list \[1, 2\]; the pattern needs a tensor"),
    "float": (TABLE, torch.ones(4), "`w` is float32; .* a table of int, int32 or int64"),
    "short": (TABLE, torch.ones(4).short(), "`w` is int16; .* a table of int, int32 or int64"),
    "bool": (TABLE, torch.ones(4).bool(), "`w` is bool; .* a table of int, int32 or int64"),
    "device": (TABLE, torch.ones(4, device="meta").int(), "`w` is on meta; .* needs it on cpu"),
    "rank": (TABLE, torch.ones(4, 4).long(), r"`w` has 2 axes, \[4, 4\]; .* needs 1, \[head\]"),
    "size": (TABLE, torch.ones(3).long(), r"`w` has 3 entries on axis 0, \[head\]; it needs 4"),
    "large": (TABLE, torch.tensor([1, 1, 2**40, 1]), rf"`w\[2\]` is {2**40}; .* in -{2**30} \.\."),
    "small": (TABLE, torch.tensor([1, -(2**31), 2, 3]), rf"`w\[1\]` is -{2**31}; entries must"),
    "layers": (LAYERS, torch.ones(2, 4).int(), r"`w` has 2 entries on axis 0, .*`layer` is 2"),
    "layered": (LAYERS, torch.full((3, 4), 2**30 + 1), r"`w\[0, 0\]` is 1073741825"),
    "not bool": (MEMBER, torch.ones(4, 2, 2).int(), "`keep` is int32; .* a table of bool, bool"),
    "member rank": (MEMBER, torch.ones(2, 2).bool(), r"`keep` has 2 axes.* 3, \[head, \*, \*\]"),
    "kv heads": (MEMBER, torch.ones(3, 2, 2).bool(), r"`keep` has 3 entries on axis 0, \[head\]"),
    "segments dtype": (PACKED, torch.ones(3), "`doc` is float32; `cu_seqlens` must be int32 or"),
    "segments rank": (PACKED, torch.zeros(2, 2).int(), r"`doc` has shape \[2, 2\]; .* one axis"),
    "segments empty": (PACKED, torch.zeros(0).int(), r"`doc` has shape \[0\]"),
    "segments start": (PACKED, torch.tensor([1, 8]), r"`doc\[0\]` is 1; `cu_seqlens` start at 0"),
    "segments fall": (
        PACKED,
        torch.tensor([0, 6, 4, 8]),
        r"`doc\[2\]` is 4, less than `doc\[1\]`, 6; `cu_seqlens` never fall",
    ),
    "segments beyond": (
        PACKED,
        torch.tensor([0, 8, 9, 11]),
        r"`doc\[2\]` is 9; this call has only 8 positions for documents to end at",
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(case: str) -> None:
    text, table, message = TABLES[case]
    attn = patterncc.compile(text)
    given = {attn.pattern.tables[0].name: table}
    with refused(message):
        attn.mask(8, heads=4, layer=2, **given)
    query, key, value = tensors(8)
    with refused(message):
        attn(query, key, value, layer=2, **given)


def test_tables_of_a_batch() -> None:
    attn = patterncc.compile(
        "pattern p(n: int[batch], r: bool[kv_head]): k < n[batch] or r[kv_head]"
    )
    n, r = torch.ones(3).int(), torch.ones(2).bool()
    query, key, value = tensors(8)
    with refused(r"`n` has 3 entries on axis 0, \[batch\]; it needs 2"):
        attn(query, key, value, n=n, r=r)
    with refused(r"`n` has 3 entries on axis 0, \[batch\]; `batch` is 3"):
        attn.mask(8, batch=3, heads=2, n=n, r=r)
    with refused(r"`r` has 2 entries on axis 0, \[kv_head\]; it needs 4"):
        attn.mask(8, heads=4, kv_heads=4, n=n, r=r)


def test_the_operator_counts_its_tables() -> None:
    query, key, value = tensors(8)
    structure = patterncc.compile(TABLE).pattern.structure
    operator = torch.ops.patterncc.attn_fwd.default
    with refused("`tables` has 0 tensors; the pattern takes 1: w"):
        operator(query, key, value, structure, [], [], None, None, 0, None)
    with refused("`tables` has 1 tensors; the pattern takes 0: none"):
        operator(query, key, value, "k <= q", [torch.ones(4).int()], [], None, None, 0, None)


def test_a_missing_table() -> None:
    with refused("`w` was not given; the pattern needs a tensor at every call"):
        patterncc.compile(TABLE).mask(8, heads=4)


# ------------------------------------------------------------------------------------------ sources


def test_a_source_of_a_wrong_type() -> None:
    with refused("`source` is int; it must be a text, a library name, a path or a Pattern"):
        patterncc.compile(3)  # type: ignore[arg-type]


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.pat"
    path.write_bytes(b"\xff\xfe\x00causal")
    with refused("bad.pat', which is not text in UTF-8"):
        patterncc.compile(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        patterncc.compile(str(tmp_path / "none.pat"))


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.pat"
    path.write_text("casual\n", encoding="utf-8")
    with pytest.raises(patterncc.PatternError, match=r"long\.pat:1:1"):
        patterncc.compile(path)
