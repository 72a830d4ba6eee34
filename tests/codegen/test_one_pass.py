"""Gradients in one pass: what the kernel's text says, what calls launch, when it is chosen."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.backward_plan import BackwardPlanner
from patterncc.codegen.gpu.gluon.dialect import ADD_OUT, PRELUDE
from patterncc.codegen.gpu.gluon.gradient_source import emit_gluon_gradients
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.launches import Launch
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.gpu.one_pass_choice import ONE_PASS, choose_one_pass
from patterncc.codegen.gpu.query_sum_source import emit_round_query, half_lines, sum_layout
from patterncc.codegen.ir import Passes
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.score.terms import load_terms

WIDE = Problem("bfloat16", 128, 128)
NARROW = Problem("bfloat16", 64, 64)
SIZES = {"heads": 8, "kv_heads": 4, "layers": 4}


def _passes(text: str) -> Passes:
    tile = (ONE_PASS.block_q, ONE_PASS.block_k)
    return lower_passes(load(text), *tile, sizes=SIZES, within=True)


def _source(text: str, problem: Problem = WIDE) -> KernelSource:
    return emit_gluon_gradients(_passes(text)[0], problem, ONE_PASS)


def _functions(source: KernelSource) -> dict[str, ast.FunctionDef]:
    nodes = ast.walk(ast.parse(source.text))
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}


# ------------------------------------------------------------------------------------ the text


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize(
    "text", ["causal", "streaming(64, 1024)", "ladder(4, 64, 100, 7)", "local_strided(16, 4, 3)"]
)
def test_both_sides_visit_the_same_tiles(text: str, group: int) -> None:
    """Bounds and loops stand twice in the text, and must not come apart."""
    functions = _functions(_source(text, replace(WIDE, group=group)))
    wanted = r"\s*(for (step|turn) in |row_first = |(begin|stop|first|end|shift)_\w+ = |head = )"
    of_both = []
    for name in ("load_tiles", "differentiate"):
        lines = ast.unparse(functions[name]).splitlines()
        of_both.append([line for line in lines if re.match(wanted, line)])
    assert of_both[0] == of_both[1]
    assert len(of_both[0]) > 6


@pytest.mark.parametrize("group", [1, 4])
def test_what_loops_count_is_written_by_them_alone(group: int) -> None:
    """Lines of tiles stand in loops that others write."""
    source = _source("ladder(4, 64, 100, 7)", replace(WIDE, group=group))
    for name in ("load_tiles", "differentiate"):
        nodes = list(ast.walk(_functions(source)[name]))
        counted = [ast.unparse(node.target) for node in nodes if isinstance(node, ast.For)]
        names = [node for node in nodes if isinstance(node, ast.Name)]
        written = [node.id for node in names if isinstance(node.ctx, ast.Store)]
        assert {one: written.count(one) for one in counted} == Counter(counted)
        assert ("turn" in counted) == (group > 1)


def test_each_side_has_the_descriptors_that_it_uses() -> None:
    functions = _functions(_source("causal"))
    loads = [argument.arg for argument in functions["load_tiles"].args.args]
    computes = [argument.arg for argument in functions["differentiate"].args.args]
    assert [name for name in loads if "_desc_" in name] == [
        *("query_desc_0", "grad_out_desc_0", "key_desc_0", "value_desc_0"),
        *("row_lse_desc_0", "row_delta_desc_0"),
    ]
    assert [name for name in computes if "_desc_" in name] == ["query_sums_desc_0"]


def test_full_tiles_have_no_mask() -> None:
    text = _source("causal").text
    partial, full = text.split("    # Full tiles.\n")[-2:]
    assert "setp." in partial.rsplit("# Partial tiles", 1)[-1]
    assert "setp." not in full


def test_limits_of_rows_do_not_wrap() -> None:
    """Positions of rows reach 2^30 either way, and so do limits: their difference is taken after a
    limit has been moved next to the tile."""
    text = _source("window(100)").text
    row = r"\(q_offset \+ row_first\)"
    limit = rf"\(tl\.minimum\(tl\.maximum\(\w+, {row} - 1\), {row} \+ BLOCK_Q\) - {row}\) - near"
    assert len(re.findall(limit, text)) == text.count(" - near") == 2


def test_names_of_gluon_stand_in_the_prelude_alone() -> None:
    rest = _source("ladder(4, 64, 100, 7)").text.replace(PRELUDE, "").replace(ADD_OUT, "")
    assert not re.search(r"hopper|mbarrier|tma\b|warpgroup_mma|warp_specialize", rest)


@pytest.mark.parametrize(
    ("text", "problem", "reason"),
    [
        ("causal", Problem("bfloat16", 96, 96), "64 or 128, both alike, not 96 and 96"),
        ("causal", Problem("bfloat16", 64, 128), "64 or 128, both alike, not 64 and 128"),
        ("causal", Problem("float32", 128, 128), "16-bit numbers, not of float32"),
        ("causal", replace(WIDE, isolates=True), "not finite"),
        ("dilated(512, 8)", WIDE, "visited in classes"),
        ("sliding_tile", WIDE, "loops around its loops"),
    ],
)
def test_refusals(text: str, problem: Problem, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        _source(text, problem)


# ------------------------------------------------------------------------------------ the sums


def _added(tile: np.ndarray) -> np.ndarray:
    """Where the numbers of a tile `[64, width]` are added: those of each half of the columns, or of
    the rows transposed, as `leave_share` leaves them, in the order of warps, steps, and the
    threads' numbers."""
    halves = []
    of_rows = [half.T for half in np.split(tile, 2, axis=0)]
    for half in np.split(tile, 2, axis=1) if tile.shape[1] == 128 else of_rows:
        parts = half.reshape(4, 2, 8, half.shape[1] // 8, 4, 2).transpose(0, 3, 2, 4, 1, 5)
        halves.append(parts.reshape(-1))
    return np.concatenate(halves)


@pytest.mark.parametrize("width", [128, 64])
@pytest.mark.parametrize("counted", [False, True])
def test_what_is_added_is_what_is_rounded(
    width: int, counted: bool, worker: ProcessPoolExecutor
) -> None:
    """`round_query` finds the rows where they are added; the last tile is ragged. Sums that counts
    say nobody wrote are 0: here those of the second head's first tile."""
    rows, rounded = worker.submit(_rounded, 100, width, counted).result()
    if counted:
        rows = rows.copy()
        rows[1, :64] = 0
    np.testing.assert_allclose(rounded, 0.5 * rows, rtol=1e-3)


def _rounded(q_len: int, width: int, counted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two heads, and what the kernel makes of them, in the interpreter."""
    import torch

    from patterncc.codegen.gpu.launch import kernel_of

    rows = np.random.default_rng(0).standard_normal((2, 256, width)).astype(np.float32)
    tiles = rows.reshape(2, 4, 64, width)
    sums = np.stack([np.stack([_added(tile) for tile in head]) for head in tiles])
    result = torch.full((1, 2, q_len, width), float("nan"), dtype=torch.float16)
    source = emit_round_query(Problem("float16", width, width), counted=counted)
    given = [torch.from_numpy(sums)]
    if counted:
        counts = torch.full((2, 8), -1, dtype=torch.int32)  # of a tile the first one is read
        counts[:, ::2] = 1
        counts[1, 0] = 0
        given.append(counts)
        given[0].view(2, 4, -1)[1, 0] = float("nan")
    kernel = kernel_of(source, torch.device("cpu"), aligned=True)
    kernel[(-(-q_len // 64), 2, 1)](*given, result, 0.5, q_len, 256)
    return rows[:, :q_len], result[0].float().numpy()


def test_what_is_added_is_what_the_test_above_says() -> None:
    text = _source("causal").text
    assert "share.reshape([4, 2, 8, columns // 8, 4, 2]).permute([0, 3, 2, 4, 1, 5])" in text
    assert "[0, 0, last_line + part * 16, 0]" in text
    assert "last_line = head_line + row_first // 2\n" in text
    assert "head_line = (batch * heads + head) * (row_length // 2)\n" in text


def test_narrow_products_take_keys_from_registers() -> None:
    """Of the five, one operand at most comes from shared memory, and a share is of half of the
    rows, as `_added` says."""
    text = _source("causal", NARROW).text
    first = re.findall(r"= multiply\((\w+), ", text)
    assert {*first} == {"key_factors", "value_factors", "factors", "key_share_0", "key_share_1"}
    tile = r"grad_scores_tiles\.index\(other \* 2 \+ (\d)\)\.slice\(part \* 32, 32, dim=1\)"
    shares = re.findall(rf"multiply\(key_share_(\d), {tile}, ", text)
    assert shares == 3 * [("0", "0"), ("1", "1")]
    assert "[0, 0, last_line + part * 8, 0]" in text
    assert "last_line = head_line + row_first // 4\n" in text
    assert "head_line = (batch * heads + head) * (row_length // 4)\n" in text


def test_the_sums_as_the_copy_engine_sees_them() -> None:
    """Lines of as many numbers as a box holds at most, one after the other."""
    layout = sum_layout(rows=3 * 256, head_dim=128)
    assert layout.sizes == (1, 1, 384, 256)
    assert layout.descriptor_strides[2:] == [256, 1]
    assert layout.descriptor_obstacle() is None
    assert [half_lines(width) * 2 * 256 for width in (128, 64)] == [64 * 128, 64 * 64]


# ------------------------------------------------------------------------------------ launches


def _launches(
    text: str,
    length: int = 16384,
    heads: tuple[int, int] = (8, 8),
    target: str = "cuda:90",
    stride: int = 128,
    batch: int = 1,
    needs_query: bool = True,
    needs_key_value: bool = True,
    in_turn: bool = False,
) -> dict[str, Launch]:
    def lowered(block_q: int, block_k: int) -> Sequence[Passes]:
        return [lower_passes(load(text), block_q, block_k, sizes=SIZES)]

    def tensor(name: str, count: int) -> Layout:
        strides = (count * length * stride, length * stride, stride, 1)
        return Layout(name, 4096, (batch, count, length, 128), strides, 2)

    named = {"grad_out": 0, "query": 0, "key": 1, "value": 1, "out": 0}
    problem = replace(WIDE, group=heads[0] // heads[1])
    launches = BackwardPlanner(lowered, BackwardConfig(), one_pass=True, in_turn=in_turn).plan(
        problem,
        target,
        [tensor(name, heads[which]) for name, which in named.items()],
        {"q_offset": 0, "layer": 0},
        0.1,
        multiprocessors=132,
        needs_query=needs_query,
        needs_key_value=needs_key_value,
    )
    return {launch.source.name: launch for launch in launches}


def test_launches() -> None:
    launches = _launches("causal", 16200)
    assert [*launches] == ["delta", "gradients", "round_query"]
    assert launches["delta"].grid == (16384 // 32, 8, 1)
    assert {buffer.name: buffer.shape for buffer in launches["delta"].buffers} == {
        "row_lse": (1, 8, 16384),
        "row_delta": (1, 8, 16384),
        "query_sums": (1, 8, 16384, 128),
        "added_shares": (1, 8, 512),
    }
    assert launches["gradients"].grid == (127, 8, 1)
    assert launches["gradients"].pointers == ("grad_key", "grad_value", "sums")
    sums = next(one for one in launches["gradients"].described if one.tensor == "query_sums")
    assert (sums.sizes, sums.box) == ([1, 1, 8 * 16384 // 2, 256], [1, 1, 16, 256])
    assert launches["round_query"].grid == (254, 8, 1)
    assert launches["round_query"].pointers == ("query_sums", "grad_query")


@pytest.mark.parametrize(
    ("text", "length", "stores"),
    [
        ("causal", 16200, False),
        ("window(1024)", 16200, True),
        ("window(4096)", 16200, False),
    ],
)
def test_only_what_is_read_is_cleared(text: str, length: int, stores: bool) -> None:
    launches = _launches(text, length, in_turn=True)
    assert ("copy_out(query_sums" in launches["gradients"].source.text) == stores
    assert ("query_sums" in launches["delta"].pointers) != stores
    assert "added_shares" in launches["delta"].pointers
    assert ("added_shares" in launches["round_query"].pointers) == stores


def test_tall_columns_are_split() -> None:
    launches = _launches("streaming(64, 8192)", 65536, heads=(1, 1))
    assert [*launches] == ["delta", "gradients", "sum_chunks", "round_query"]
    assert launches["sum_chunks"].source.config.emitter == "triton"
    assert launches["gradients"].grid[0] > 512


@pytest.mark.parametrize(
    "options",
    [
        {"length": 1024},
        {"target": "cuda:100"},
        {"stride": 132},  # rows are no multiples of 16 bytes apart
        {"needs_query": False},
        {"needs_key_value": False},
    ],
)
def test_other_calls_take_kernels_of_their_own(options: Mapping[str, Any]) -> None:
    assert "gradients" in _launches("causal")
    assert "gradients" not in _launches(**{"text": "causal", **options})


@pytest.mark.parametrize(
    ("text", "problem", "length", "reason"),
    [
        ("causal", WIDE, 16384, None),
        ("causal", replace(WIDE, group=4), 16384, None),
        ("causal", WIDE, 16400, None),
        ("causal", Problem("float16", 128, 128), 16384, None),
        ("window(4096)", WIDE, 16384, None),
        ("window(1024)", WIDE, 16384, None),
        ("window(512)", WIDE, 16384, "seen by 10 tiles of 64 rows on average"),
        ("causal", WIDE, 1024, "faster from 16 on"),
        ("dilated(512, 8)", WIDE, 16384, "classes"),
        ("window(512) or dilated(512, 8)", WIDE, 16384, "2 passes"),
        ("causal", NARROW, 16384, None),
        ("causal", Problem("bfloat16", 96, 96), 16384, "head dimensions are 64 or 128"),
        (
            "causal",
            replace(WIDE, terms=load_terms("softcap(score, 5)", None)),
            16384,
            "score terms",
        ),
        ("pattern p(w: int[head]): window(w[head])", WIDE, 16384, "known to the device alone"),
        (
            "pattern p(d: segments): causal and d[q] == d[k]",
            WIDE,
            16384,
            "known to the device alone",
        ),
        ("causal and k % 5 != q % 7", WIDE, 16384, "takes registers"),
        ("sliding_tile", WIDE, 16384, "loops around its loops"),
    ],
)
def test_choice(text: str, problem: Problem, length: int, reason: str | None) -> None:
    env = {"q_len": length, "kv_len": length, "q_offset": 0, "layer": 0}
    choice = choose_one_pass(_passes(text), problem, "cuda:90", env, 8)
    assert (choice.program is not None) == (reason is None), choice.reason
    assert reason is None or reason in choice.reason
