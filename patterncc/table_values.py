"""Tables as a command line gives them: `keep=mask.npy`, `keep=mask.json`, `doc=0,100,300`.

Reads and checks them. Loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.dsl.errors import ConfigError
from patterncc.dsl.pattern import ParameterType, Pattern, SegmentsType, TableType

LIMIT = 1 << 30  # of numbers in tables

Array = npt.NDArray[Any]


def read(name: str, text: str) -> Array:
    """A table from what follows `NAME=`: a .npy or .json file, JSON, or numbers with commas.

    Raises:
        ConfigError: It is none of these.
        OSError: The file cannot be read.
    """
    path = Path(text)
    if path.suffix == ".npy":
        try:
            loaded: Array = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise ConfigError(f"--table {name}: {path} is no .npy file of numbers") from error
        return loaded
    if path.suffix == ".json":
        return _parsed(name, str(path), path.read_text(encoding="utf-8"))
    if text.lstrip().startswith("["):
        return _parsed(name, "the list", text)
    try:
        return np.array([int(word) for word in text.split(",")], np.int64)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"--table {name} is {text!r}", ("a .npy or .json file", "[[1, 0], [1, 1]]", "0,100,300")
        ) from None


def read_real(name: str, text: str) -> Array:
    """A table of real numbers, float64, from what follows `NAME=`, as in `read`.

    Raises:
        ConfigError: It is none, or an entry is no number.
        OSError: The file cannot be read.
    """
    path = Path(text)
    if path.suffix == ".npy":
        try:
            loaded: Any = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise ConfigError(f"--table {name}: {path} is no .npy file of numbers") from error
    elif path.suffix == ".json":
        loaded = _json(name, str(path), path.read_text(encoding="utf-8"))
    elif text.lstrip().startswith("["):
        loaded = _json(name, "the list", text)
    else:
        loaded = text.split(",")
    try:
        return np.array(loaded, np.float64)
    except (ValueError, TypeError):
        raise ConfigError(
            f"--table {name} is {text!r}; the score reads real numbers",
            ("a .npy or .json file", "[[0.5, 0], [1, 2]]", "0.5,0.25"),
        ) from None


def _parsed(name: str, what: str, text: str) -> Array:
    nested = _json(name, what, text)
    _check_nested(name, nested, [])
    return np.array(nested)


def _json(name: str, what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--table {name}: {what} is not JSON: {error}") from None
    except RecursionError:
        raise ConfigError(f"--table {name}: {what} is nested too deeply") from None


def _check_nested(name: str, nested: Any, place: list[int]) -> Any:
    """Checks that lists are even and hold integers or truth values; returns their shape."""
    if not isinstance(nested, list):
        if not isinstance(nested, int) or abs(nested) > LIMIT:
            raise ConfigError(
                f"--table {name}: {_at(name, place)} is {nested!r}; it must be an integer up to "
                f"{LIMIT}, true or false"
            )
        return ()
    shapes = [_check_nested(name, part, [*place, index]) for index, part in enumerate(nested)]
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ConfigError(
                f"--table {name}: {_at(name, [*place, index])} has the shape {list(shape)}, "
                f"the one before it {list(shapes[0])}"
            )
    return (len(nested), *(shapes[0] if shapes else ()))


def _at(name: str, place: list[int]) -> str:
    return f"{name}[{', '.join(map(str, place))}]" if place else name


def check(
    pattern: Pattern, tables: Mapping[str, Array], sizes: Mapping[str, int]
) -> dict[str, Array]:
    """The tables of a call as the pattern declares them: int64, or bool; segments int64.

    Args:
        pattern: What declares them.
        tables: By name; not all need be there.
        sizes: `heads`, `kv_heads`, `layers`, `kv_len` of the call, and `batch` of its tensors.

    Raises:
        ConfigError: One is unknown, or is not what is declared; the message names the table, the
            index and the value.
    """
    declared = {parameter.name: parameter.type for parameter in pattern.tables}
    checked = {}
    for name, table in tables.items():
        if name not in declared:
            numbers = [number.name for number in pattern.numbers]
            if name in numbers or name in dict(pattern.fixed):
                raise ConfigError(f"--table {name}: `{name}` is a number; give it with -p")
            raise ConfigError(f"--table {name}: the pattern has no such table", tuple(declared))
        checked[name] = _check(name, declared[name], table, sizes)
    return checked


def _check(name: str, kind: ParameterType, table: Array, sizes: Mapping[str, int]) -> Array:
    if isinstance(kind, TableType):
        return _check_table(name, kind, table, sizes)
    assert isinstance(kind, SegmentsType)
    offsets = _integers(name, table)
    if offsets.ndim != 1 or not len(offsets):
        raise ConfigError(
            f"--table {name} has the shape {list(table.shape)}; "
            "segments are one list, where documents begin and the last one ends: 0,100,300"
        )
    if offsets[0] != 0:
        raise ConfigError(f"--table {name}: {name}[0] is {offsets[0]}; the first document is at 0")
    falls = np.flatnonzero(np.diff(offsets) < 0)
    if len(falls):
        place = int(falls[0]) + 1
        raise ConfigError(
            f"--table {name}: {name}[{place}] is {offsets[place]}, "
            f"less than the one before, {offsets[place - 1]}"
        )
    if offsets[-1] > sizes["kv_len"]:
        raise ConfigError(
            f"--table {name}: {name}[{len(offsets) - 1}] is {offsets[-1]}; "
            f"the documents end beyond the keys, {sizes['kv_len']}"
        )
    return offsets


def _check_table(name: str, kind: TableType, table: Array, sizes: Mapping[str, int]) -> Array:
    if table.ndim != len(kind.axes):
        axes = ", ".join(axis or "*" for axis in kind.axes)
        raise ConfigError(
            f"--table {name} has {table.ndim} axes, {list(table.shape)}; "
            f"the pattern needs {len(kind.axes)}, [{axes}]"
        )
    wanted = {"head": "heads", "kv_head": "kv_heads", "layer": "layers", "batch": "batch"}
    for place, axis in enumerate(kind.axes):
        size = wanted.get(axis or "")
        if size is not None and table.shape[place] != sizes[size]:
            raise ConfigError(
                f"--table {name} has {table.shape[place]} entries on axis {place}, [{axis}]; "
                f"the call has {sizes[size]} {size}"
            )
    if kind.element == "int":
        return _integers(name, table)
    if table.dtype == np.bool_:
        return table
    numbers = _integers(name, table)
    wrong = np.argwhere((numbers != 0) & (numbers != 1))
    if len(wrong):
        place_of = wrong[0].tolist()
        raise ConfigError(
            f"--table {name}: {_at(name, place_of)} is {numbers[tuple(place_of)]}; "
            "it must be true or false, 1 or 0"
        )
    return numbers.astype(np.bool_)


def _integers(name: str, table: Array) -> Array:
    if table.dtype == np.bool_ or not np.issubdtype(table.dtype, np.integer):
        raise ConfigError(f"--table {name} has values of {table.dtype}; it needs integers")
    if table.size and not -LIMIT <= int(table.min()) <= int(table.max()) <= LIMIT:
        place = np.argwhere((table < -LIMIT) | (table > LIMIT))[0].tolist()
        raise ConfigError(
            f"--table {name}: {_at(name, place)} is {table[tuple(place)]}; the most is {LIMIT}"
        )
    return table.astype(np.int64)
