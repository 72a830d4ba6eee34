"""Importers: what a file or mask means, and what is said of a wrong one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, noop_mask

import patterncc
from patterncc import importers
from patterncc.dsl.errors import ArgumentError, PatternError, UnsupportedError
from patterncc.importers.minference import BLOCK_SPARSE, STREAMING, VERTICAL_SLASH
from tests.front.inputs import tensors

# What torch says of its sparse tensors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
]


def table(imported: importers.Imported, name: str) -> Tensor:
    found = imported.values[name]
    assert isinstance(found, Tensor)
    return found


# ------------------------------------------------------------------------------- DuoAttention


def write_duo(folder: Path, scores: list[list[float]] | str, config: Any = None) -> Path:
    text = scores
    if not isinstance(scores, str):
        text = "\n".join("\t".join(map(repr, row)) for row in scores) + "\n"
    assert isinstance(text, str)
    (folder / "full_attention_heads.tsv").write_text(text, encoding="utf-8")
    config = {"sink_size": 4, "recent_size": 6} if config is None else config
    words = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(words, encoding="utf-8")
    return folder


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.7, 0.75, 0.99, 1.0])
def test_duo_takes_the_heads_from_the_quantile_on(tmp_path: Path, sparsity: float) -> None:
    scores = np.random.default_rng(3).uniform(0, 1, (5, 8))
    imported = importers.duo_attention(write_duo(tmp_path, scores.tolist()), sparsity=sparsity)
    expected = scores >= np.quantile(scores, sparsity)
    if sparsity >= 1:
        expected[:] = False
    assert table(imported, "retrieval").tolist() == expected.tolist()


def test_duo_threshold_and_clipping(tmp_path: Path) -> None:
    folder = write_duo(tmp_path, [[0.2, 1.5], [0.5, -3.0]])
    assert table(importers.duo_attention(folder, threshold=0.5), "retrieval").tolist() == [
        [False, True],
        [True, False],
    ]
    assert table(importers.duo_attention(folder, threshold=1.0), "retrieval").tolist() == [
        [False, True],
        [False, False],
    ]


def test_duo_equal_scores_are_told_apart_by_their_place(tmp_path: Path) -> None:
    imported = importers.duo_attention(write_duo(tmp_path, [[0.5, 0.5], [0.5, 0.5]]))
    assert table(imported, "retrieval").tolist() == [[True, True], [False, False]]


def test_duo_runs(tmp_path: Path) -> None:
    imported = importers.duo_attention(write_duo(tmp_path, [[0.9, 0.1], [0.0, 0.8]]))
    attention = patterncc.compile(imported.text)
    for layer, kv_head in ((0, 0), (0, 1), (1, 0), (1, 1)):
        mask = attention.mask(
            40, head=2 * kv_head, layer=layer, heads=4, kv_heads=2, layers=2, **imported.values
        )
        wanted = patterncc.compile("causal" if layer == kv_head else "streaming(4, 6)")
        assert torch.equal(mask, wanted.mask(40))


@pytest.mark.parametrize(
    ("scores", "config", "message"),
    [
        ("0.5\t0.5\n0.5\n", None, "line 2 has scores of 1 heads; the lines before have 2"),
        ("0.5\t0.5\t0.1\n", None, "line 1 has scores of 3 heads; the model has 2"),
        ("0.5\tx\n", None, "line 1: the score of head 1 is 'x'"),
        ("0.5\tnan\n", None, "line 1: the score of head 1 is 'nan'"),
        ("\n\n", None, "has no scores"),
        ("0.5\t0.5\n", None, "scores of 1 layers; the model has 2"),
        ("0.5\t0.5\n0\t1\n", "{", r"config\.json is not JSON"),
        ("0.5\t0.5\n0\t1\n", {"sink_size": 4}, "`recent_size` is None"),
        ("0.5\t0.5\n0\t1\n", {"sink_size": -4, "recent_size": 1}, "`sink_size` is -4"),
        ("0.5\t0.5\n0\t1\n", [], "`sink_size` is None"),
    ],
)
def test_duo_bad_files(tmp_path: Path, scores: str, config: Any, message: str) -> None:
    folder = write_duo(tmp_path, scores, config)
    with pytest.raises(ArgumentError, match=message):
        importers.duo_attention(folder, layers=2, kv_heads=2)


def test_duo_bad_arguments(tmp_path: Path) -> None:
    folder = write_duo(tmp_path, [[0.5]])
    with pytest.raises(ArgumentError, match=r"`sparsity` is 1\.5"):
        importers.duo_attention(folder, sparsity=1.5)
    with pytest.raises(ArgumentError, match="give one"):
        importers.duo_attention(folder, sparsity=0.5, threshold=0.5)
    with pytest.raises(OSError, match="full_attention_heads"):
        importers.duo_attention(tmp_path / "nowhere")


# --------------------------------------------------------------------------------- MInference

LAYERS = [
    {"0": ["vertical_and_slash", 30, 50, 1.0], "1": ["stream_llm", 3, 9, 1.0]},
    {"1": ["block_sparse", 100, 100, 0.5], "2": ["vertical_and_slash", 60, 70, 0.5]},
]


def test_minference_masks_are_those_of_the_kinds(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(LAYERS), encoding="utf-8")
    imported = importers.minference(path, 4, layers=2)
    assert imported.kinds.tolist() == [
        [VERTICAL_SLASH, STREAMING, VERTICAL_SLASH, VERTICAL_SLASH],
        [VERTICAL_SLASH, BLOCK_SPARSE, VERTICAL_SLASH, VERTICAL_SLASH],
    ]
    assert imported.sizes[0].tolist() == [[30, 50], [3, 9], [1000, 6096], [1000, 6096]]
    query, key, _ = tensors(150, batch=1)
    attention = patterncc.compile(imported.text)
    for layer in range(2):
        found = imported.tables(query, key, layer)
        for head in range(4):
            mask = attention.mask(
                150, head=head, layer=layer, heads=4, kv_heads=2, **imported.values, **found
            )
            if (layer, head) == (0, 1):
                wanted = patterncc.compile("streaming(3, 9)").mask(150)
            elif (layer, head) == (1, 1):
                blocks = {"keep": found["keep"]}
                wanted = patterncc.compile("causal_blocks", size=64).mask(
                    150, head=head, heads=4, kv_heads=2, **blocks
                )
            else:
                lists = {name: found[name] for name in ("verticals", "slashes")}
                wanted = patterncc.compile("vertical_slash").mask(
                    150, head=head, heads=4, kv_heads=2, **lists
                )
            assert torch.equal(mask, wanted), (layer, head)


def test_tables_go_to_a_device() -> None:
    moved = importers.minference([{"0": ["stream_llm", 4, 100, 0.0]}], 1).to("meta")
    assert isinstance(moved, importers.MInferenceHeads)
    assert {table.device.type for table in moved.values.values()} == {"meta"}


def test_minference_takes_only_the_tables_of_its_kinds() -> None:
    imported = importers.minference([{"0": ["stream_llm", 4, 100, 0.0]}], 1)
    assert imported.values.keys() == {"sinks", "window"}
    assert imported.tables(*tensors(9, batch=1, heads=1, kv_heads=1)[:2], 0) == {}
    names = [p.name for p in patterncc.compile(imported.text).pattern.tables]
    assert names == ["sinks", "window"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "is not a list"),
        ([], "has 0 layers"),
        ([{}], "has 1 layers; the model has 2"),
        ([{"4": ["stream_llm", 1, 1, 0]}, {}], "layer 0: head '4' is not in 0 .. 3"),
        ([{}, {"x": ["stream_llm", 1, 1, 0]}], "layer 1: head 'x' is not in 0 .. 3"),
        ([{"1": [], "01": []}, {}], "layer 0: head 1 has \\[\\]"),
        ([{"1": ["stream_llm", 1, 1, 0], "01": ["stream_llm", 1, 1, 0]}, {}], "1 is listed twice"),
        ([{"1": ["dense", 1, 1, 0]}, {}], "head 1 is 'dense'; the kinds are stream_llm"),
        ([{"1": ["stream_llm", -1, 1, 0]}, {}], "head 1 has the size -1"),
        ([{"1": ["stream_llm", 1, 1.5, 0]}, {}], "head 1 has the size 1.5"),
    ],
)
def test_minference_bad_files(document: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        importers.minference(document, 4, layers=2)


def test_minference_bad_calls(tmp_path: Path) -> None:
    imported = importers.minference([{}], 4)
    query, key, _ = tensors(20, batch=1)
    with pytest.raises(ArgumentError, match="`layer` is 1"):
        imported.tables(query, key, 1)
    with pytest.raises(ArgumentError, match="the file has 4 heads"):
        imported.tables(query[:, :2], key, 0)
    path = tmp_path / "model.json"
    path.write_text("[", encoding="utf-8")
    with pytest.raises(ArgumentError, match=r"model\.json is not JSON"):
        importers.minference(path, 4)


# ---------------------------------------------------------------------------------- CSR, BSR


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_csr_is_its_dense_form(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    heads = data.draw(st.sampled_from([None, 2]))
    size = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))
    shape = (rows, columns) if heads is None else (heads, rows, columns)
    count = rows * columns // 2
    keep = torch.zeros(shape, dtype=torch.bool).reshape(-1, rows * columns)
    for head in range(len(keep)):
        order = data.draw(st.permutations(range(rows * columns)))
        keep[head, order[:count]] = True
    keep = keep.reshape(shape)
    sparse = keep.float().to_sparse_csr()
    imported = importers.csr_blocks(
        sparse.crow_indices(), sparse.col_indices(), size=size, columns=columns, causal=True
    )
    assert torch.equal(table(imported, "keep"), keep)
    q_len, kv_len = rows * size[0], columns * size[1]
    attention = patterncc.compile(imported.text)
    for head in range(heads or 1):
        each = keep if heads is None else keep[head]
        dense = each.repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)
        causal = torch.arange(q_len)[:, None] >= torch.arange(kv_len)
        mask = attention.mask(
            q_len, kv_len, head, q_offset=0, heads=heads or 1, keep=table(imported, "keep")
        )
        assert torch.equal(mask, dense & causal)


@pytest.mark.parametrize(
    ("starts", "listed", "message"),
    [
        ([1, 2], [0, 1], r"`crow_indices\[0\]` is 1; it must be 0"),
        ([0, 2, 1], [0], r"`crow_indices\[2\]` is 1, less than the one before, 2"),
        ([0, 1, 3], [0, 1], r"`crow_indices\[2\]` is 3; it must be the number of blocks, 2"),
        ([0, 1, 2], [0, 4], r"`col_indices\[1\]` is 4; the columns are 0 .. 3"),
        ([0, 1, 2], [-1, 3], r"`col_indices\[0\]` is -1"),
        ([0, 1, 4], [2, 3, 0, 3], r"`col_indices\[3\]` is 3, which row 1 has at 1 already"),
        ([[0, 1], [0, 1]], [[0], [9]], r"`col_indices\[1, 0\]` is 9"),
        ([[0, 1]], [0], "both have heads, or neither"),
        ([[0, 1]], [[0], [0]], "1 heads and `col_indices` 2"),
    ],
)
def test_csr_bad_input(starts: Any, listed: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        importers.csr_blocks(torch.tensor(starts), torch.tensor(listed), size=4, columns=4)


def test_csr_bad_types() -> None:
    with pytest.raises(ArgumentError, match=r"`col_indices` is torch.float32 \[2\]"):
        importers.csr_blocks(torch.tensor([0, 2]), torch.ones(2), size=4, columns=4)
    with pytest.raises(ArgumentError, match="`size` is 0"):
        importers.csr_blocks(torch.tensor([0, 1]), torch.tensor([0]), size=0, columns=4)
    with pytest.raises(ArgumentError, match="no blocks in 0 rows"):
        importers.csr_blocks(torch.tensor([0]), torch.tensor([0]), size=4, columns=4)


def test_bsr() -> None:
    dense = torch.zeros(12, 16)
    dense[0:3, 4:8] = 1
    dense[6:9, 0:4] = 2
    sparse = dense.to_sparse_bsr((3, 4))
    imported = importers.bsr(sparse)
    mask = patterncc.compile(imported.text).mask(12, 16, q_offset=0, **imported.values)
    assert torch.equal(mask, dense != 0)
    dense[7, 2] = 0
    with pytest.raises(ArgumentError, match=r"`values\[1\]` has 11 pairs of 12"):
        importers.bsr(dense.to_sparse_bsr((3, 4)))
    with pytest.raises(ArgumentError, match=r"it must be torch.sparse_bsr"):
        importers.bsr(dense)
    empty = torch.sparse_bsr_tensor(
        sparse.crow_indices(), sparse.col_indices(), sparse.values() * 0
    )
    assert not table(importers.bsr(empty), "keep").any()


# --------------------------------------------------------------------------------- BlockMask


def causal(batch: Any, head: Any, q: Any, k: Any) -> Any:
    return q >= k


def window(batch: Any, head: Any, q: Any, k: Any) -> Any:
    return (q >= k) & (q - k < 50)


def by_head(batch: Any, head: Any, q: Any, k: Any) -> Any:
    return (q - k) % 2 == head


@pytest.mark.parametrize(
    ("mask_mod", "inside", "shape"),
    [
        (causal, "causal", (None, None, 100, 100)),
        (causal, "causal", (2, 4, 130, 130)),
        (window, "window(50)", (None, 2, 130, 130)),
        (window, "pattern near(n = 50): window(n) or false", (None, 2, 130, 130)),
        (causal, "causal", (None, None, 64, 130)),
        (by_head, "(q - k) % 2 == head", (None, 2, 70, 70)),
        (noop_mask, None, (1, 1, 70, 90)),
    ],
)
def test_block_mask(mask_mod: Any, inside: str | None, shape: Any) -> None:
    batch, heads, q_len, kv_len = shape
    mask = create_block_mask(
        mask_mod, batch, heads, q_len, kv_len, device="cpu", BLOCK_SIZE=(32, 16)
    )
    if inside is not None and "pattern" in inside:
        with pytest.raises(ArgumentError, match="`inside` has the parameters n"):
            importers.block_mask(mask, inside=inside)
        return
    imported = importers.block_mask(mask, inside=inside)
    attention = patterncc.compile(imported.text)
    q, k = torch.arange(q_len)[:, None], torch.arange(kv_len)
    for index in range(batch or 1):
        for head in range(heads or 1):
            wanted = torch.as_tensor(mask_mod(torch.tensor(index), head, q, k)).expand(
                q_len, kv_len
            )
            ours = attention.mask(
                q_len, kv_len, head, heads=heads or 1, batch=index, **imported.values
            )
            assert torch.equal(ours, wanted), imported.text


def test_block_mask_with_an_unknown_function_is_refused() -> None:
    mask = create_block_mask(window, None, None, 100, 100, device="cpu", BLOCK_SIZE=32)
    with pytest.raises(UnsupportedError, match="what `window` does in them cannot be read"):
        importers.block_mask(mask)
    with pytest.raises(PatternError, match="windw"):
        importers.block_mask(mask, inside="windw(50)")


def test_block_mask_without_partial_blocks_needs_no_pattern() -> None:
    counts = torch.tensor([[[1, 2]]], dtype=torch.int32)
    indices = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.int32)
    none, zeros = torch.zeros_like(counts), torch.zeros_like(indices)
    mask = BlockMask.from_kv_blocks(none, zeros, counts, indices, 16, causal, (32, 32))
    imported = importers.block_mask(mask)
    assert imported.values.keys() == {"full"}
    assert table(imported, "full").tolist() == [[False, True], [True, True]]


def lists(counts: Any, indices: Any) -> Any:
    """A `BlockMask` of 32 queries and 48 keys in blocks of 16 from two lists, unchecked."""

    class Mask:
        BLOCK_SIZE = (16, 16)
        seq_lengths = (32, 48)
        kv_num_blocks = torch.tensor(counts)
        kv_indices = torch.tensor(indices)
        full_kv_num_blocks: Any = None
        full_kv_indices: Any = None
        mask_mod = staticmethod(noop_mask)

    return Mask()


@pytest.mark.parametrize(
    ("counts", "indices", "message"),
    [
        ([[[4, 0]]], [[[[0, 1, 2, 0], [0] * 4]]], r"`kv_num_blocks\[0, 0, 0\]` is 4; .* 0 .. 3"),
        ([[[1, -1]]], [[[[0], [0]]]], r"`kv_num_blocks\[0, 0, 1\]` is -1"),
        ([[[1, 1]]], [[[[0], [3]]]], r"`kv_indices\[0, 0, 1, 0\]` is 3; the key blocks are 0 .. 2"),
        ([[[1, 1]]], [[[[-1], [1]]]], r"`kv_indices\[0, 0, 0, 0\]` is -1"),
        ([[[1, 3]]], [[[[0, 0, 0], [2, 1, 2]]]], r"`kv_indices\[0, 0, 1, 2\]` is 2, which the row"),
        ([[[1]]], [[[[0]]]], "32 queries in blocks of 16 have 2 rows"),
        ([[1, 1]], [[[[0], [0]]]], r"`kv_num_blocks` is \[1, 2\]"),
        ([[[1, 1]]], [[[0], [0]]], r"`kv_indices` is \[1, 2, 1\]"),
        ([[[0, 0]]], [[[[0], [0]]]], "lists no block at all"),
    ],
)
def test_block_mask_bad_lists(counts: Any, indices: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        importers.block_mask(lists(counts, indices))


def test_block_mask_with_a_block_in_both_lists() -> None:
    mask = lists([[[1, 2]]], [[[[0, 0], [1, 2]]]])
    mask.full_kv_num_blocks = torch.tensor([[[1, 1]]])
    mask.full_kv_indices = torch.tensor([[[[1], [2]]]])
    with pytest.raises(ArgumentError, match="both list block 2 in row 1 of batch 0, head 0"):
        importers.block_mask(mask)
