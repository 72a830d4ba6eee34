"""JSON files that many processes read and write at once: each whole or absent, checked when read.

A record is one file: what it is, a schema number, a digest of the content, the content. What does
not read back as written is set aside under another name, with the reason, and never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SCHEMA = 1
"""Of every record; a change that old readers would misread makes it 2, in another folder."""

ASIDE = "set-aside"
"""Folder, beside the records, of files that were not usable."""

_ABANDONED = 3600.0  # seconds after which what a killed writer left behind is removed


class StoreWarning(UserWarning):
    """A file of the store was not usable and was set aside."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it was read.

    Attributes:
        path: Its file.
        kind: What it is.
        content: As it was written.
    """

    path: Path
    kind: str
    content: Mapping[str, Any]


class UnreadableError(ValueError):
    """A file is no record, or was changed since it was written; the reason is its argument."""


def encode(kind: str, content: Mapping[str, Any]) -> str:
    """The text of a record."""
    document = {"patterncc": kind, "schema": SCHEMA, "digest": digest(content), "content": content}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def decode(data: bytes, kind: str) -> Mapping[str, Any]:
    """The content of a record of a kind.

    Raises:
        UnreadableError: It is none.
    """
    try:
        document = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise UnreadableError(f"it is not JSON: {error}") from None
    if not isinstance(document, dict) or "patterncc" not in document:
        raise UnreadableError("it was not written by patterncc")
    if document["patterncc"] != kind:
        raise UnreadableError(f"it is {document['patterncc']!r} and should be {kind!r}")
    if document.get("schema") != SCHEMA:
        raise UnreadableError(
            f"its schema is {document.get('schema')!r}, this version reads {SCHEMA}"
        )
    content = document.get("content")
    if not isinstance(content, dict) or digest(content) != document.get("digest"):
        raise UnreadableError("its content does not match its digest")
    return content


def digest(content: Mapping[str, Any]) -> str:
    """A hash of some content, whatever the order of its fields."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def array_digest(array: npt.NDArray[Any]) -> str:
    """A hash of an array's type, shape and content."""
    head = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def write(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Writes a record; another process sees the old file or the new one, never a part.

    Raises:
        OSError: The folder cannot be made or written to.
    """
    write_text(path, encode(kind, content))


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_folder(folder: Path, kind: str) -> Iterator[Record]:
    """The usable records of a folder, by name; others are set aside with a `StoreWarning`."""
    for path in sorted(folder.glob("*.json")):
        try:
            yield Record(path, kind, decode(path.read_bytes(), kind))
        except FileNotFoundError:  # removed since it was listed
            continue
        except OSError as error:
            warn_unused(path, f"it cannot be read ({error.strerror})")
        except UnreadableError as error:
            set_aside(path, str(error))


def set_aside(path: Path, reason: str) -> None:
    """Moves a file out of the way and warns; one that cannot be moved is only left unused."""
    place = path.parent / ASIDE / f"{path.name}.{time.time_ns()}"
    try:
        place.parent.mkdir(exist_ok=True)
        path.replace(place)
        where = f"moved to {place}"
    except FileNotFoundError:  # another process was faster
        return
    except OSError as error:
        where = f"it could not be moved ({error.strerror}) and is not used"
    warnings.warn(f"{path}: {reason}; {where}", StoreWarning, stacklevel=2)


def warn_unused(path: Path, reason: str) -> None:
    """Warns of a file that is not usable and stays where it is."""
    warnings.warn(f"{path}: {reason}; it is not used", StoreWarning, stacklevel=2)


def aside(folder: Path) -> tuple[Path, ...]:
    """The files that were set aside."""
    return tuple(sorted((folder / ASIDE).glob("*")))


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]


def _sweep(folder: Path) -> None:
    """Removes what killed writers left."""
    oldest = time.time() - _ABANDONED
    for path in folder.glob(".*.tmp"):
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except OSError:
            continue
