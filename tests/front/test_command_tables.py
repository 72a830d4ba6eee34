"""Tables at the command line: what is read, what is refused, and the examples of the library."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patterncc import cli, example_values, table_values
from patterncc.codegen import reference
from patterncc.dsl import library, load
from patterncc.dsl.errors import ConfigError
from tests.front.conftest import Run

SIZES = {"heads": 4, "kv_heads": 2, "layers": 3, "kv_len": 40, "batch": 1}


def read(name: str, text: str, pattern: str) -> Any:
    return table_values.check(load(pattern), {name: table_values.read(name, text)}, SIZES)[name]


W = "pattern p(w: int[head]): q - k < w[head]"
KEEP = "pattern p(keep: bool[kv_head, *, *]): keep[kv_head, q // 8, k // 8]"
DOC = "pattern p(doc: segments): doc[q] == doc[k]"


def test_lists_and_files(tmp_path: Path) -> None:
    assert read("w", "1,2,3,4", W).tolist() == [1, 2, 3, 4]
    assert read("doc", "0,10,10,40", DOC).tolist() == [0, 10, 10, 40]
    assert read("doc", "0", DOC).tolist() == [0]
    nested = [[[True, False]], [[False, True]]]
    found = read("keep", json.dumps(nested), KEEP)
    assert found.dtype == np.bool_ and found.tolist() == nested
    ones = [[[1, 0]], [[0, 1]]]
    path = tmp_path / "keep.json"
    path.write_text(json.dumps(ones), encoding="utf-8")
    assert read("keep", str(path), KEEP).tolist() == nested
    for dtype in (np.bool_, np.uint8, np.int64):
        np.save(tmp_path / "keep.npy", np.array(ones, dtype))
        found = read("keep", str(tmp_path / "keep.npy"), KEEP)
        assert found.dtype == np.bool_ and found.tolist() == nested


@pytest.mark.parametrize(
    ("pattern", "name", "text", "message"),
    [
        (W, "w", "1,2,x", "--table w is '1,2,x'"),
        (W, "w", "[1, 2", "the list is not JSON"),
        (W, "w", "[[1, 2], [3]]", r"w\[1\] has the shape \[1\], the one before it \[2\]"),
        (W, "w", "[1, 2.5]", r"w\[1\] is 2\.5; it must be an integer"),
        (W, "w", '[1, "2"]', r"w\[1\] is '2'"),
        (W, "w", "1,2,3", r"3 entries on axis 0, \[head\]; the call has 4 heads"),
        (W, "w", "[[1, 2, 3, 4]]", r"2 axes, \[1, 4\]; the pattern needs 1, \[head\]"),
        (W, "w", f"1,2,3,{1 << 40}", r"w\[3\] is 1099511627776; the most is"),
        (W, "w", "[true, false, true, true]", "values of bool; it needs integers"),
        (W, "v", "1", "no such table; legal: w"),
        ("window", "n", "5", "`n` is a number; give it with -p"),
        (KEEP, "keep", "[[[2]], [[0]]]", r"keep\[0, 0, 0\] is 2; it must be true or false"),
        (KEEP, "keep", "[[[1]]]", r"1 entries on axis 0, \[kv_head\]; the call has 2 kv_heads"),
        (DOC, "doc", "1,40", r"doc\[0\] is 1; the first document is at 0"),
        (DOC, "doc", "0,30,20,40", r"doc\[2\] is 20, less than the one before, 30"),
        (DOC, "doc", "0,41", r"doc\[1\] is 41; the documents end beyond the keys, 40"),
        (DOC, "doc", "[[0, 40]]", r"has the shape \[1, 2\]"),
        (DOC, "doc", "[]", "segments are one list|needs integers"),
    ],
)
def test_what_is_refused(pattern: str, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(name, text, pattern)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "w.npy"
    path.write_bytes(b"no numbers")
    with pytest.raises(ConfigError, match=r"w\.npy is no \.npy file of numbers"):
        read("w", str(path), W)
    np.save(path, np.array([1.5] * 4))
    with pytest.raises(ConfigError, match="values of float64"):
        read("w", str(path), W)
    np.save(path, np.array([object()]), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"no \.npy file"):
        read("w", str(path), W)
    with pytest.raises(OSError, match="nowhere"):
        read("w", str(tmp_path / "nowhere.json"), W)


# ----------------------------------------------------------------------------------- examples


def needs_values(name: str) -> bool:
    pattern = load(name)
    return bool(pattern.tables) or any(number.value is None for number in pattern.numbers)


def test_each_library_pattern_that_needs_values_has_an_example() -> None:
    assert {name for name in library.names() if needs_values(name)} == set(example_values.names())
    assert example_values.example("causal", load("causal"), SIZES) is None


@pytest.mark.parametrize("name", example_values.names())
@pytest.mark.parametrize("sizes", [
    {"heads": 4, "kv_heads": 2, "layers": 32, "kv_len": 700, "batch": 2},
    {"heads": 1, "kv_heads": 1, "layers": 32, "kv_len": 1, "batch": 1},
])  # fmt: skip
def test_examples_are_what_patterns_declare(name: str, sizes: Mapping[str, int]) -> None:
    pattern = load(name)
    found = example_values.example(name, pattern, sizes, seed=3)
    assert found is not None
    checked = table_values.check(pattern, found.tables, sizes)
    assert {table.name for table in pattern.tables} == set(checked)
    missing = {number.name for number in pattern.numbers if number.value is None}
    assert missing == set(found.numbers)
    again = example_values.example(name, pattern, sizes, seed=3)
    assert again is not None
    for table, values in found.tables.items():
        assert np.array_equal(values, again.tables[table])
    # And the pattern can be read with them.
    length = min(sizes["kv_len"], 40)
    size = {size: sizes[size] for size in ("heads", "kv_heads", "layers")}
    mask = reference.mask(
        pattern,
        q_len=length,
        **size,
        values=found.numbers,
        tables={table: torch.from_numpy(values) for table, values in checked.items()},
    )
    assert mask.shape == (length, length)


def test_examples_are_named(run: Run) -> None:
    out = run("explain", "document", "--q-len", "300").out
    assert "read at run time; 9 documents; an example, seed 0" in out
    given = run("explain", "document", "--q-len", "300", "--table", "doc=0,100,300").out
    assert "2 documents" in given and "an example" not in given
    assert "n  run-time         37" in run("explain", "prefix", "--q-len", "300").out
    own = run("explain", "prefix", "--q-len", "300", "-p", "n=5").out
    assert "n  run-time          5" in own and "an example" not in own


def test_counts_with_tables_are_those_of_the_mask(run: Run) -> None:
    found = run("explain", "document", "--q-len", "300", "--table", "doc=0,100,300", "--json").json
    assert [group["pairs"] for group in found["groups"]] == [100**2 + 200**2]
    duo = run(
        *("explain", "duo", "--q-len", "300", "--heads", "4", "--kv-heads", "2", "--json"),
        *("-p", "sinks=4", "-p", "window=20", "--table", "retrieval=1,0"),
    ).json
    groups = {tuple(group["heads"]): group["pairs"] for group in duo["groups"]}
    kept = sum(len({*range(min(4, q + 1)), *range(max(0, q - 19), q + 1)}) for q in range(300))
    assert groups == {(0, 1): 300 * 301 // 2, (2, 3): kept}


@pytest.mark.parametrize("name", example_values.names())
def test_explain_and_plot_work_by_themselves(run: Run, name: str) -> None:
    assert run("explain", name, "--q-len", "256", "--heads", "2").code == cli.OK
    assert run("plot", name, "--q-len", "96", "--heads", "2", "--ascii").code == cli.OK


@pytest.mark.slow
@pytest.mark.parametrize("name", library.names())
def test_every_pattern_runs_by_itself(run: Run, name: str) -> None:
    options = ("--q-len", "160", "--heads", "2", "--kv-heads", "1", "--head-dim", "16")
    found = run("run", name, *options, "--batch", "2", "--repeats", "1", "--device", "cpu")
    assert found.code == cli.OK, found.out + found.err
    assert "right" in found.out
