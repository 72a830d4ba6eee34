"""`Entry`: a tuned config and how it was found, and files of many of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from patterncc.autotune import records
from patterncc.autotune.key import ConfigKey
from patterncc.autotune.records import UnreadableError
from patterncc.autotune.space import SearchSpace, config_from, phase_named
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import DType, Problem
from patterncc.dsl.errors import ConfigError

COLLECTION = "tuned configs"
"""What `export` writes and what is shipped: many entries in one file."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tuned config and how it was found.

    Attributes:
        key: What it is for.
        config: Values of the phase's knobs.
        seconds: Median time of a call with it.
        default_seconds: Of a call with the config that had been taken without tuning, timed in
            turn with it; None where that one does not work.
        trials: Configs that were timed.
        legal: Configs in the space.
        call: Sizes of the call that was timed: `batch`, `heads`, `q_len`, the run-time numbers.
        written_by: `patterncc 0.1.0`.
        date: ISO 8601, UTC.
        default: Values of the knobs of the config that had been taken without tuning; None where
            that one does not work, or in entries from before this was kept.
    """

    key: ConfigKey
    config: Mapping[str, Any]
    seconds: float
    default_seconds: float | None
    trials: int
    legal: int
    call: Mapping[str, int] = field(default_factory=dict)
    written_by: str = ""
    date: str = ""
    default: Mapping[str, Any] | None = None

    @property
    def kernel_config(self) -> KernelConfig:
        """The config."""
        return config_from(self.config)

    @property
    def default_config(self) -> KernelConfig | None:
        """The config that had been taken without tuning, where it is known."""
        return None if self.default is None else config_from(self.default)

    @property
    def beats_default(self) -> bool:
        """Whether tuning found anything: a config that is not the default's."""
        return self.default is None or dict(self.config) != dict(self.default)

    @property
    def speedup(self) -> float | None:
        """Over the config that had been taken without tuning; None where that one does not work."""
        return None if self.default_seconds is None else self.default_seconds / self.seconds

    def as_json(self) -> dict[str, Any]:
        """The entry as a JSON object."""
        return {**asdict(self), "key": self.key.as_json()}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Entry:
        """The entry of a JSON object.

        Raises:
            ConfigError: A field is missing, unknown or wrong, or the config is illegal for the key.
        """
        names = {each.name for each in fields(Entry)}
        document = {"default": None, **document}  # which entries did not always have
        if set(document) != names:
            wrong = sorted(names ^ set(document))[0]
            raise ConfigError(f"the field {wrong!r} of an entry is missing or unknown")
        for name in ("key", "config", "call", "default"):
            known = document[name] is not None or name != "default"
            if known and not isinstance(document[name], dict):
                raise ConfigError(f"the field {name} of an entry is {document[name]!r}")
        for name in ("seconds", "default_seconds"):
            value = document[name]
            if value is None and name == "default_seconds":
                continue
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ConfigError(f"the field {name} of an entry is {value!r}")
        key = ConfigKey.from_json(document["key"])
        space = space_of(key)
        missing = {knob.name for knob in space.knobs} - set(document["config"])
        if missing:
            # Something that was no choice then may be better now, and the default with it.
            raise ConfigError(
                f"it was tuned by a version that had no choice of {sorted(missing)[0]}"
            )
        config = space.config(document["config"])
        for name in ("config", "default"):
            config_from(document[name] or {})  # for the types
        refusal = space.refusal(config)
        if refusal is not None:
            raise ConfigError(refusal)
        return Entry(**{**document, "key": key})


def space_of(key: ConfigKey) -> SearchSpace:
    """The search space of a key.

    Raises:
        ConfigError: Its phase is unknown.
    """
    dtypes: dict[str, DType] = {
        "float16": "float16",
        "bfloat16": "bfloat16",
        "float32": "float32",
        "float64": "float64",
    }
    if key.dtype not in dtypes:
        raise ConfigError(f"the dtype of a key is {key.dtype!r}", tuple(dtypes))
    problem = Problem(dtypes[key.dtype], key.head_dim, key.value_head_dim, key.group)
    return SearchSpace(phase_named(key.phase), problem, key.target)


def write_collection(path: Path, entries: Iterable[Entry]) -> None:
    """Writes entries to one file, in a stable order."""
    ordered = sorted((entry.as_json() for entry in entries), key=lambda one: json.dumps(one["key"]))
    records.write(path, COLLECTION, {"entries": ordered})


def read_collection(path: Path) -> tuple[Entry, ...]:
    """The entries of a shipped file; where it is not usable it is named in a warning and none."""
    try:
        return tuple(decode_collection(path.read_bytes()))
    except UnreadableError as error:
        records.warn_unused(path, str(error))
        return ()


def decode_collection(data: bytes) -> Iterator[Entry]:
    content = records.decode(data, COLLECTION)
    documents = content.get("entries")
    if not isinstance(documents, list):
        raise UnreadableError("it has no list of entries")
    for number, document in enumerate(documents):
        try:
            yield Entry.from_json(document)
        except (ConfigError, TypeError) as error:
            reason = error.message if isinstance(error, ConfigError) else "it is no object"
            raise UnreadableError(f"entry {number}: {reason}") from None
