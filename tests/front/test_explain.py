"""Explanations: numbers equal brute force on the oracle's mask, printed loops are the tiles."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from patterncc import cli, launchers
from patterncc.call import Call
from patterncc.codegen import reference, schedule
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.ir import Direction
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError
from patterncc.explain import explain, is_causal
from patterncc.explain_text import format_explanation, quantity, ranges
from patterncc.explanation import Explanation
from patterncc.loops import ROW, loops
from patterncc.notation import layout, mathematics, percent

PROBLEM = Problem("float16", 64, 32)
LADDER = "ladder(4, 24, 8, 3)"
CASES = {
    "streaming(3, 20)": {},
    "causal": {"q_len": 37, "kv_len": 90},
    "around(9)": {"q_len": 90, "kv_len": 37},
    "dilated(6, 4)": {},
    "local_strided(8, 2, 3)": {},
    "longformer(10, 1, 3)": {},
    "chunked(24)": {},
    "window(5)": {"q_len": 50, "kv_len": 40, "q_offset": 3},
    "k < 0 or q - k == 3": {},
    "q - k > 70": {},
    "k < 1 and k > q + 200 or q == 11": {},
    LADDER: {},
    "if head in {0, 2} then causal else window(7)": {},
    "if layer % 3 == 2 then full else window(5 + head)": {},
}


def call(text: str, **sizes: Any) -> Call:
    q_len = sizes.pop("q_len", 75)
    return Call.of(load(text), q_len, heads=4, layers=5, **sizes)


def dense(call: Call, head: int, layer: int) -> npt.NDArray[np.bool_]:
    """The oracle's mask of one head."""
    mask = reference.mask(
        call.pattern,
        q_len=call.q_len,
        kv_len=call.kv_len,
        q_offset=call.q_offset,
        head=head,
        layer=layer,
        heads=call.heads,
        layers=call.layers,
    )
    return mask.numpy()


def tiles(mask: npt.NDArray[np.bool_], block_q: int, block_k: int) -> npt.NDArray[np.uint8]:
    """The block map of a mask by looking at every pair."""
    rows, columns = (
        -(-n // block) for n, block in zip(mask.shape, (block_q, block_k), strict=True)
    )
    result = np.zeros((rows, columns), np.uint8)
    for i in range(rows):
        for j in range(columns):
            part = mask[i * block_q : (i + 1) * block_q, j * block_k : (j + 1) * block_k]
            whole = part.shape[1] == block_k and part.all()
            result[i, j] = 2 if whole else 1 if part.any() else 0
    return result


@pytest.mark.parametrize("text", CASES)
def test_numbers_equal_brute_force(text: str) -> None:
    block_q, block_k = 16, 8
    at = call(text, **CASES[text])
    found = explain(at, PROBLEM, block_q=block_q, block_k=block_k)
    seen = set()
    for group in found.groups:
        for layer, head in group.members:
            seen.add((layer, head))
            mask = dense(at, head, layer)
            (only,) = group.passes
            step = only.q_step
            assert step == only.k_step, "a case with a key stride needs its classes here"
            classes = [
                tiles(mask[row::step, (at.q_offset + row) % step :: step], block_q, block_k)
                for row in range(step)
            ]
            visited = sum((states > 0).sum() for states in classes)
            keys = mask.sum(axis=1)
            work = group.work
            assert work.pairs == mask.sum()
            assert (work.full, work.visited) == (sum((s == 2).sum() for s in classes), visited)
            assert work.tiles == tiles(mask, block_q, block_k).size
            assert work.longest == max((states > 0).sum(axis=1).max() for states in classes)
            assert work.useful_flops == 2 * mask.sum() * (64 + 32)
            assert work.computed_flops == 2 * visited * block_q * block_k * (64 + 32)
            assert work.tile_bytes == visited * block_k * (64 + 32) * 2
            np.testing.assert_allclose(group.keys, (keys.min(), keys.mean(), keys.max()))
            assert group.density == mask.mean()
            dead = [row for start, end in group.dead for row in range(start, end)]
            assert dead == np.flatnonzero(keys == 0).tolist()
    assert seen == {(layer, head) for layer in range(5) for head in range(4)}


@pytest.mark.parametrize("text", CASES)
def test_causal_is_what_the_masks_say(text: str) -> None:
    at = call(text)
    later = False
    for layer in range(5):
        for head in range(4):
            mask = dense(at, head, layer)
            later |= bool(np.triu(mask, 1).any())
    if is_causal(at):
        assert not later
    else:
        assert later or text == "k < 1 and k > q + 200 or q == 11"  # only below row 11 of 75


def test_heads_of_one_mask_are_one_group() -> None:
    found = explain(call("if layer % 2 == 1 then causal else window(9)"), PROBLEM)
    assert [len(group.members) for group in found.groups] == [12, 8]
    text = format_explanation(found)
    assert "layers 0, 2, 4" in text and "layers 1, 3" in text
    found = explain(call(LADDER), PROBLEM, block_q=8, block_k=8)
    assert [sorted({layer for layer, _ in g.members}) for g in found.groups] == [
        [0, 3],
        [1, 4],
        [2],
    ]
    found = explain(call("causal"), PROBLEM)
    assert len(found.groups) == 1 and "every head of every layer" in format_explanation(found)


# ------------------------------------------------------------------------------------- loops


def visited(text: str, rows: int, own: str) -> dict[int, set[int]]:
    """The tiles that a printed loop visits, row by row, read back from its text."""
    tiles_text, _, when = text.partition("   for ")
    body = _python(tiles_text)
    result: dict[int, set[int]] = {}
    for row in _where(when, own, rows) if when else range(rows):
        scope = {own: row, "min": min, "max": max}
        if "n ∈" in body:  # j = 8 * n + 5,  n ∈ [0, i)
            step, _, span = body.partition(",  ")
            low, high = _ends(span)
            counters = range(eval(low, scope), eval(high, scope))
            result[row] = {eval(step.split("=", 1)[1], {**scope, "n": n}) for n in counters}
        elif "∈" in body:  # j ∈ [0, i)
            low, high = _ends(body)
            result[row] = set(range(eval(low, scope), eval(high, scope)))
        else:  # j = i
            result[row] = {eval(body.split("=", 1)[1], scope)}
    return result


def _ends(text: str) -> tuple[str, str]:
    """The two ends of `x ∈ [low, high)`, which may hold commas in calls."""
    inside = text[text.index("[") + 1 : -1]
    depth = 0
    for place, letter in enumerate(inside):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            return inside[:place], inside[place + 1 :]
    raise AssertionError(text)


def _python(text: str) -> str:
    text = text.replace("−", "-").replace(" · ", " * ")
    return re.sub(r"⌊(.*?) / (\d+)⌋", r"((\1) // \2)", text)


def _where(condition: str, own: str, rows: int) -> set[int]:
    """The rows of conditions such as `i ≥ 3`, `i = 3, 7, … 19` and `i ≥ 2, i ≠ 5, 8, … 20`."""
    if " or " in condition:
        left, _, right = condition.partition(" or ")
        return _where(left, own, rows) | _where(right, own, rows)
    if "…" in condition:
        head, sign, progression = re.split("(=|≠)", condition, maxsplit=1)
        first, second, last = map(int, re.findall(r"\d+", progression))
        numbers = set(range(first, last + 1, second - first))
        if sign == "=":
            return numbers
        before = head.rsplit(own, 1)[0].rstrip(", ")
        return (_where(before, own, rows) if before else set(range(rows))) - numbers
    text = condition.replace("≥", ">=").replace("≤", "<=")
    text = re.sub(r"(?<![<>])=", "==", text)
    return {row for row in range(rows) if eval(text, {own: row})}


@pytest.mark.parametrize("direction", ["forward", "transposed"])
@pytest.mark.parametrize(
    "text",
    ["streaming(3, 20)", "causal", "local_strided(8, 2, 4)", "chunked(32)", "around(40)", LADDER],
)
def test_printed_loops_visit_the_tiles(text: str, direction: Direction) -> None:
    at = call(text, q_len=160)  # a multiple of the tile: no tile is cut short
    program, env = at.program(8, 8), at.env(layer=1)
    own = ROW[direction]
    states = schedule.block_map(program, env)
    states = states if direction == "forward" else states.T
    got = np.zeros_like(states)
    for loop in loops(program, env, direction):
        if loop.tiles.startswith("…") or " of the " in loop.when:
            pytest.fail(f"not read back: {loop}")
        line = f"{loop.tiles}   for {loop.when}" if loop.when else loop.tiles
        count = 0
        for row, columns in visited(line, 20, own).items():
            for column in columns:
                assert got[row, column] == 0, (line, row, column)
                got[row, column] = {"partial": 1, "full": 2}[loop.kind]
                count += 1
        assert count == loop.visits, line
    np.testing.assert_array_equal(got, states)


def test_loops_of_streaming_read_as_a_person_writes_them() -> None:
    at = call("streaming(4, 512)", q_len=2048)
    assert [str(loop) for loop in loops(at.program(128, 128), at.env(), "forward")] == [
        "partial  j = 0   for i = 0 or i ≥ 4",
        "partial  j = i − 4   for i ≥ 5",
        "full     j ∈ [max(i − 3, 0), i)   for i ≥ 1",
        "partial  j = i   for i ≥ 1",
    ]


# ------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("q // 64 == k // 64", "⌊q / 64⌋ = ⌊k / 64⌋"),
        ("0 <= q - k < 64", "0 ≤ q − k < 64"),
        ("abs(q - k) <= 3 or k < 2", "k < 2 ∨ |q − k| ≤ 3"),
        ("(q - k) % 8 == 0 and k != 5", "k ≠ 5 ∧ (q − k) mod 8 = 0"),
        ("causal and (k < 3 or q - k < 5)", "k ≤ q ∧ (k < 3 ∨ q − k < 5)"),
        ("if head == 1 then k <= q else k < 4", "if head = 1 then k ≤ q else k < 4"),
        ("min(q, k) * 2 < max(q - 1, 4)", "2 · min(q, k) < max(q − 1, 4)"),
        ("(q + 3) // 4 == -k", "⌊(q + 3) / 4⌋ = −k"),
        ("true", "true"),
    ],
)
def test_mathematics(text: str, shown: str) -> None:
    assert mathematics(load(text).body) == shown


def test_long_mathematics_is_laid_out() -> None:
    text = " or ".join(
        f"(k < {n} and q - k < {10 * n} and q // {n} == k // {n})" for n in range(2, 6)
    )
    lines = layout(load(text).body)
    assert len(lines) == 4 and all(line.startswith("∨ ") for line in lines[1:])
    text = f"if layer == 0 then ({text}) else causal"
    assert layout(load(text).body)[0] == "if layer = 0:"


@pytest.mark.parametrize(
    ("share", "shown"), [(0, "0%"), (1, "100%"), (0.21894, "21.89%"), (3.1e-5, "0.0031%")]
)
def test_percent(share: float, shown: str) -> None:
    assert percent(share) == shown


def test_quantities_and_ranges() -> None:
    assert quantity(0, "B") == "0 B"
    assert quantity(999, "B") == "999 B"
    assert quantity(999_600, "B") == "1 MB"
    assert quantity(30_090_982_400, "FLOP") == "30.1 GFLOP"
    assert ranges([0, 1, 2, 3, 5, 7, 8]) == "0–3, 5, 7, 8"


# ------------------------------------------------------------------------------------- the command


def test_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a.pat"
    file.write_text("pattern a(n, step = 4): q - k < n and (q - k) % step == 0 and k <= q", "utf-8")
    argv = ["explain", str(file), "--q-len", "100", "-p", "n=20", "--heads", "2", "--layers", "1"]
    assert cli.main([*argv, "--json"]) == cli.OK
    document = json.loads(capsys.readouterr().out)
    assert document["pattern"]["causal"] is True
    assert [(p["name"], p["kind"], p["value"]) for p in document["pattern"]["parameters"]] == [
        ("step", "fixed", 4),
        ("n", "run-time", 20),
    ]
    assert document["call"]["q_len"] == document["call"]["kv_len"] == 100
    (group,) = document["groups"]
    assert group["heads"] == [0, 1] and group["dead_rows"] == []
    assert group["pairs"] == sum(min(5, row // 4 + 1) for row in range(100))
    assert {"tiles", "kind", "when", "visits"} == set(group["passes"][0]["forward"][0])


def test_dead_rows_are_named() -> None:
    found = explain(call("causal and q - k > 9 and q - k < 12"), PROBLEM)
    assert found.groups[0].dead == ((0, 10),)
    assert "10 (rows 0–9)" in format_explanation(found)


def test_a_number_without_a_value() -> None:
    with pytest.raises(ConfigError, match="`n`"):
        Call.of(load("pattern a(n): q - k < n"), 8)


def test_explanations_are_deterministic() -> None:
    def once() -> Explanation:
        return explain(call(LADDER), PROBLEM)

    assert format_explanation(once()) == format_explanation(once())


def test_the_kernel_is_that_of_the_call() -> None:
    """Run-time numbers of a call choose the tiles, as nearest powers of two."""
    text, problem = "pattern p(n = 1000): window(n)", Problem("bfloat16", 128, 128)
    forward = launchers.launcher(load(text).structure, ())
    strides = (2 * 4096 * 128, 4096 * 128, 128, 1)
    layouts = [
        Layout(name, 0, (1, 2, 4096, 128), strides, 2) for name in ("query", "key", "value", "out")
    ]
    shapes = []
    for number in (100, 200, 1000, 1100, 5000):
        env = {"q_offset": 0, "n": number}
        (launch,) = forward.planner.plan(problem, "cuda:90", layouts, env, 1.0)
        config = launch.source.config
        shapes.append((config.block_q, config.block_k))
        emitter = explain(Call.of(load(text, n=number), 4096, heads=2), problem).emitter
        assert emitter is not None
        assert emitter.config is not None
        assert (emitter.config.block_q, emitter.config.block_k) == shapes[-1]
    assert shapes == [(64, 64)] * 4 + [(128, 128)]
