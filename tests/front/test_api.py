"""`compile`, `attention` and `Attention`: sources, values, answers, and what a pattern says of
itself."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import patterncc
from patterncc.dsl.errors import ConfigError
from tests.compile_counts import compile_counts
from tests.front.inputs import assert_right, expected, tensors

ROOT = Path(__file__).resolve().parents[2]
STREAMING = "pattern streaming(sinks = 4, window = 16): causal and (k < sinks or q - k < window)"


# ---------------------------------------------------------------------------------------- sources


def test_sources_are_one_pattern(tmp_path: Path) -> None:
    path = tmp_path / "local.pat"
    path.write_text("# a window\n0 <= q - k < 8\n", encoding="utf-8")
    attn = patterncc.compile("0 <= q - k and q - k < 8")
    assert patterncc.compile(path) == attn
    assert patterncc.compile(str(path)) == attn
    assert patterncc.compile(attn.pattern) == attn
    assert patterncc.compile("window(8)") == attn


def test_a_library_name() -> None:
    assert patterncc.compile("causal") == patterncc.compile("k <= q")


def test_one_of_several_patterns() -> None:
    text = "pattern a(): k <= q\npattern b(): q <= k\n"
    assert patterncc.compile(text) == patterncc.compile("q <= k")
    assert patterncc.compile(text, name="a") == patterncc.compile("causal")


def test_values_become_constants_or_defaults() -> None:
    attn = patterncc.compile("pattern p(size, n = 3): q // size == k // size and q - k < n", size=8)
    assert dict(attn.pattern.fixed) == {"size": 8}
    assert [parameter.name for parameter in attn.pattern.numbers] == ["n"]
    assert torch.equal(attn.mask(20, n=5), patterncc.compile(attn.pattern, n=5).mask(20))


# ----------------------------------------------------------------------------------------- a value


def test_equal_by_text() -> None:
    attn = patterncc.compile(STREAMING)
    same = patterncc.compile(STREAMING.replace("causal", "(k <= q)").replace(" = 4", "=4"))
    assert attn == same
    assert hash(attn) == hash(same)
    assert attn != patterncc.compile(STREAMING, window=8)
    assert attn != attn.text


@pytest.mark.parametrize("text", [STREAMING, "causal", "pattern p(w: int[head]): q - k < w[head]"])
def test_travels(text: str) -> None:
    attn = patterncc.compile(text)
    for other in (copy.copy(attn), copy.deepcopy(attn), pickle.loads(pickle.dumps(attn))):
        assert other == attn
        assert other.pattern.structure == attn.pattern.structure
        assert other.pattern.numbers == attn.pattern.numbers


def test_repr_is_the_way_to_make_it() -> None:
    attn = patterncc.compile(STREAMING)
    assert eval(repr(attn)) == attn
    assert attn.text == attn.pattern.text


def test_is_read_only() -> None:
    attn = patterncc.compile("causal")
    with pytest.raises(AttributeError):
        attn.pattern = attn.pattern  # type: ignore[misc]
    with pytest.raises(AttributeError):
        attn.other = 1  # type: ignore[attr-defined]


# ----------------------------------------------------------------------------------------- answers

CASES = {
    "causal": {},
    "full": {},
    "0 <= q - k < 7": {},
    STREAMING: {},
    "if head % 2 == 0 then causal else window(5)": {},
    "if kv_head == 0 then causal else window(5)": {},
    "if batch == 1 then causal else window(5)": {},
    "causal and (k // 4 + layer) % 3 == 0": {"layer": 2},
    "q - k < 3 * (layers - layer) and causal": {"layer": 1, "layers": 3},
    "k > q": {},
}


@pytest.mark.parametrize("text", CASES)
@pytest.mark.parametrize(("q_len", "kv_len"), [(40, 40), (5, 33), (33, 5), (1, 40), (300, 300)])
def test_right(text: str, q_len: int, kv_len: int) -> None:
    attn = patterncc.compile(text)
    query, key, value = tensors(q_len, kv_len)
    results = attn(query, key, value, return_lse=True, **CASES[text])
    assert_right(results, expected(attn, query, key, value, **CASES[text]), query)


@pytest.mark.parametrize("q_offset", [-50, -3, 0, 7, 35, 100])
def test_offsets(q_offset: int) -> None:
    attn = patterncc.compile(STREAMING)
    query, key, value = tensors(20, 40)
    results = attn(query, key, value, return_lse=True, q_offset=q_offset)
    assert_right(results, expected(attn, query, key, value, q_offset=q_offset), query)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    attn = patterncc.compile(STREAMING)
    query, key, value = tensors(150, head_dim=24, value_head_dim=40, dtype=dtype)
    results = attn(query, key, value, return_lse=True)
    assert_right(results, expected(attn, query, key, value), query)


@pytest.mark.parametrize("scale", [0.0, -0.5, 1, 3.5])
def test_scale(scale: float) -> None:
    attn = patterncc.compile("causal")
    query, key, value = tensors()
    results = attn(query, key, value, return_lse=True, scale=scale)
    assert_right(results, expected(attn, query, key, value, scale=scale), query)


def test_run_time_numbers() -> None:
    attn = patterncc.compile(STREAMING)
    query, key, value = tensors()
    for values in ({"window": 3}, {"sinks": 0}, {"sinks": 9, "window": -1}):
        results = attn(query, key, value, return_lse=True, **values)
        assert_right(results, expected(attn, query, key, value, **values), query)


def test_the_log_sum_exp_is_returned_when_asked() -> None:
    attn = patterncc.compile("causal")
    query, key, value = tensors()
    out = attn(query, key, value)
    both = attn(query, key, value, return_lse=True)
    assert isinstance(out, torch.Tensor)
    assert torch.equal(out, both[0])
    assert torch.equal(out, patterncc.attention(query, key, value, "causal"))
    also = patterncc.attention(query, key, value, "causal", return_lse=True)
    assert torch.equal(also[1], both[1])


def test_the_mask_is_the_text() -> None:
    mask = patterncc.compile("0 <= q - k < 2 or k == 0").mask(3, 4)
    # Rows stand at positions 1, 2 and 3.
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]


def test_the_block_map_is_the_mask_by_tiles() -> None:
    attn = patterncc.compile("causal")
    tiles = attn.block_map(10, block_q=4, block_k=4)
    assert tiles.dtype == torch.uint8
    assert tiles.tolist() == [[1, 0, 0], [2, 1, 0], [2, 2, 1]]
    # Rows stand at 4, 5 and 6; the last tile hangs over key 6.
    assert attn.block_map(3, 7, 4, 4).tolist() == [[2, 1]]
    assert attn.block_map(3, 7, 4, 4, q_offset=0).tolist() == [[1, 0]]
    assert attn.block_map(0, 7, 4, 4).shape == (0, 2)
    window = patterncc.compile("pattern p(n = 4): 0 <= q - k < n")
    assert window.block_map(8, block_q=4, block_k=4, n=100).tolist() == [[1, 0], [2, 1]]


# --------------------------------------------------------------------------------------- attention


def test_attention_reads_a_text_once() -> None:
    query, key, value = tensors()
    text = "0 <= q - k < 1234"
    patterncc.attention(query, key, value, text)
    before = compile_counts()
    patterncc.attention(query, key, value, text)
    assert compile_counts() == before


def test_attention_sees_a_changed_file(tmp_path: Path) -> None:
    query, key, value = tensors()
    path = tmp_path / "some.pat"
    path.write_text("causal", encoding="utf-8")
    first = patterncc.attention(query, key, value, path)
    path.write_text("window(2)", encoding="utf-8")
    second = patterncc.attention(query, key, value, str(path))
    assert torch.equal(first, patterncc.attention(query, key, value, "causal"))
    assert torch.equal(second, patterncc.attention(query, key, value, "window(2)"))


def test_attention_takes_a_pattern_and_values() -> None:
    query, key, value = tensors()
    attn = patterncc.compile(STREAMING)
    assert torch.equal(
        patterncc.attention(query, key, value, attn.pattern, window=5),
        attn(query, key, value, window=5),
    )


def test_a_new_length_window_or_offset_lowers_nothing() -> None:
    attn = patterncc.compile(STREAMING)
    attn(*tensors(40))
    before = compile_counts()
    for length in (1, 2, 57, 128, 129, 200):
        attn(*tensors(length), window=length, sinks=length // 2, layer=length)
        attn(*tensors(1, length), q_offset=length // 2)
    assert compile_counts() == before


# -------------------------------------------------------------------------------------------- emit


@pytest.mark.parametrize("stage", ["ast", "mask", "ir", "triton"])
def test_emit(stage: str) -> None:
    attn = patterncc.compile(STREAMING)
    text = attn.emit(stage)
    assert text.endswith("\n")
    assert text == patterncc.compile(STREAMING).emit(stage)


def test_emit_refuses() -> None:
    attn = patterncc.compile("causal")
    with pytest.raises(ConfigError, match="there is no stage 'irr'; legal: ast, mask, ir, triton"):
        attn.emit("irr")
    with pytest.raises(ConfigError, match="there is no pass 'x'; legal: lower"):
        attn.emit("ir", after="x")
    with pytest.raises(ConfigError, match="a pass was named for the stage 'ast'; legal: ir"):
        attn.emit("ast", after="lower")


# ----------------------------------------------------------------------------------------- imports


def test_a_pattern_is_read_and_printed_without_torch() -> None:
    code = (
        "import sys, patterncc; a = patterncc.compile('causal'); a.text, repr(a), a.emit('ir'); "
        "print('torch' in sys.modules, 'triton' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False False"


# ------------------------------------------------------------------------------- explain and plot


def test_explain_with_other_numbers() -> None:
    attn = patterncc.compile(STREAMING)
    text = attn.explain(512, window=32)
    assert text.startswith("streaming\n")
    assert "window = 32" in text
    assert text != attn.explain(512)
    with pytest.raises(patterncc.ArgumentError, match="`windw` is not a parameter"):
        attn.explain(512, windw=3)


def test_explain_with_tables() -> None:
    attn = patterncc.compile("pattern p(w: int[head]): 0 <= q - k < w[head]")
    text = attn.explain(64, heads=2, w=torch.tensor([8, 64]))
    assert "head 0" in text and "keys of a row         1 … 8" in text
    assert attn.explain(64, heads=2, w=[8, 64]) == text
    with pytest.raises(ConfigError, match="no table was given for `w`"):
        attn.explain(64)
    with pytest.raises(patterncc.ArgumentError, match="`w` has 3 entries on axis 0"):
        attn.explain(64, heads=2, w=torch.tensor([8, 64, 1]))


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    attn = patterncc.compile(STREAMING)
    attn.plot(tmp_path / "mask.png", 64, window=8)
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="jpg"):
        attn.plot(str(tmp_path / "mask.jpg"))
