"""`TunedStore`: the configs that were tuned on this machine, and those that came with patterncc.

One file for each key, so processes that tune different things never meet; of two that tune the same
the last one to finish stays. Lookups are answered from memory.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from patterncc.autotune import records
from patterncc.autotune.cost import Constants, constants_from
from patterncc.autotune.entries import (
    Entry,
    decode_collection,
    read_collection,
    write_collection,
)
from patterncc.autotune.key import FAMILY_FIELDS, FARTHEST, ConfigKey, differences, distance
from patterncc.autotune.records import UnreadableError
from patterncc.autotune.space import FORWARD, Phase
from patterncc.dsl.errors import ConfigError

KIND = "tuned config"
CALIBRATION = "calibration"

_CONSTANTS = "constants"  # folder of the cost model's, by device

SHIPPED = Path(__file__).parent / "shipped"

Origin = Literal["user", "shipped"]

_TICK = 20_000_000  # nanoseconds, longer than the clock of any usual file system stands still


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a lookup.

    Attributes:
        wanted: The key that was asked for.
        entry: The entry to use; None on a miss.
        origin: Whose it is; None on a miss.
        distance: From the key that was asked for; 0 for the very same.
        reason: Why this one, or why none, in one sentence.
        differences: The fields in which it differs; on a miss, in which the nearest of all does.
    """

    wanted: ConfigKey
    entry: Entry | None
    origin: Origin | None
    distance: float
    reason: str
    differences: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether it was tuned for the very key."""
        return self.entry is not None and not self.differences


class TunedStore:
    """Tuned configs of a user's folder and of the files that came with patterncc.

    Args:
        folder: Where this user's are kept; need not exist.
        shipped: Folder of collections that are only read.
    """

    def __init__(self, folder: Path, shipped: Path | None = SHIPPED) -> None:
        self.folder = folder / "tuned" / f"v{records.SCHEMA}"
        self._shipped_folder = shipped
        self._index: dict[ConfigKey, tuple[Entry, Origin]] = {}
        self._families: dict[tuple[Any, ...], list[ConfigKey]] = {}
        self._answers: dict[ConfigKey, Found] = {}
        self._stamp: int | None = -1
        self._shipped: tuple[Entry, ...] | None = None
        self._given: dict[ConfigKey, tuple[Entry, Origin]] = {}
        self._reads_files = True

    @property
    def studies(self) -> Path:
        """Folder of the studies that are not done."""
        return self.folder / "studies"

    # --------------------------------------------------------------------------------- reading

    def lookup(self, wanted: ConfigKey) -> Found:
        """The entry for a key, or the nearest one; what other processes wrote since is seen."""
        self._refresh()
        found = self._answers.get(wanted)
        if found is None:
            found = self._answers[wanted] = self._search(wanted)
        return found

    def has_family(self, family: tuple[Any, ...]) -> bool:
        """Whether there is any entry of a family (`ConfigKey.family`): if not, no lookup can
        answer, and its key need not be found out."""
        self._refresh()
        return family in self._families

    def entries(self) -> tuple[tuple[Entry, Origin], ...]:
        """All entries, this user's before the shipped ones of the same key, in a stable order."""
        self._refresh()
        return tuple(sorted(self._index.values(), key=lambda pair: repr(pair[0].key)))

    def aside(self) -> tuple[Path, ...]:
        """Files that were found unusable."""
        return records.aside(self.folder)

    def _refresh(self) -> None:
        """Reads the folder again if a file came or went since."""
        stamp: int | None = None
        if self._reads_files:
            try:
                stamp = self.folder.stat().st_mtime_ns
            except OSError:  # not there, or not ours to read: a call runs with what is shipped
                stamp = None
        if stamp == self._stamp:
            return
        index: dict[ConfigKey, tuple[Entry, Origin]] = {}
        if self._reads_files:
            if self._shipped is None:
                self._shipped = tuple(self._read_shipped())
            index.update((entry.key, (entry, "shipped")) for entry in self._shipped)
        if stamp is not None:
            index.update((entry.key, (entry, "user")) for entry in self._read_own())
        index.update(self._given)
        families = defaultdict(list)
        for key in sorted(index, key=repr):  # so that ties are broken alike everywhere
            families[key.family].append(key)
        self._index, self._families, self._answers = index, dict(families), {}
        # A change within the same tick of the file system's clock would go unseen.
        settled = stamp is None or time.time_ns() - stamp > _TICK
        self._stamp = stamp if settled else -1

    def give(self, entries: Iterable[tuple[Entry, Origin]], *, alone: bool = False) -> None:
        """Takes entries for this process, in place of those that files have for their keys; no file
        changes.

        Args:
            entries: With whose they are.
            alone: Whether there are no others from now on, whatever files hold.
        """
        if alone:
            self._reads_files, self._given = False, {}
        self._given.update((entry.key, (entry, origin)) for entry, origin in entries)
        self._stamp = -1

    def _read_own(self) -> Iterator[Entry]:
        for record in records.read_folder(self.folder, KIND):
            try:
                entry = Entry.from_json(record.content)
            except ConfigError as error:
                records.set_aside(record.path, error.message)
                continue
            if record.path.name != _file_name(entry.key):
                records.set_aside(record.path, "its name is that of another key")
                continue
            yield entry

    def _read_shipped(self) -> Iterator[Entry]:
        if self._shipped_folder is not None:
            for path in sorted(self._shipped_folder.glob("*.json")):
                yield from read_collection(path)

    def _search(self, wanted: ConfigKey) -> Found:
        exact = self._index.get(wanted)
        if exact is not None:
            entry, origin = exact
            return Found(wanted, entry, origin, 0.0, f"tuned for this very key ({origin})")
        if not self._index:
            return Found(wanted, None, None, math.inf, "nothing has been tuned yet")
        family = self._families.get(wanted.family, [])
        if not family:
            return self._miss(wanted)
        # Of equally near ones this user's: `family` is in a stable order.
        nearest = min(
            family, key=lambda known: (distance(wanted, known), self._index[known][1] != "user")
        )
        away, differing = distance(wanted, nearest), differences(wanted, nearest)
        if away > FARTHEST:
            reason = f"the nearest tuned key is {away:.3g} away, farther than {FARTHEST:g}"
            return Found(wanted, None, None, away, reason, differing)
        entry, origin = self._index[nearest]
        reason = f"the nearest tuned key ({origin}), {away:.3g} away"
        return Found(wanted, entry, origin, away, reason, differing)

    def _miss(self, wanted: ConfigKey) -> Found:
        """No entry shares the family: says in which of its fields the closest one differs."""
        if all(known.target != wanted.target for known in self._index):
            reason = f"nothing has been tuned for {wanted.target} yet"
            return Found(wanted, None, None, math.inf, reason)

        def mismatches(known: ConfigKey) -> tuple[bool, bool, int]:
            """Another target is farther than another phase, and that than all else."""
            pairs = zip(wanted.family, known.family, strict=True)
            elsewhere, other_phase = known.target != wanted.target, known.phase != wanted.phase
            return elsewhere, other_phase, sum(one != other for one, other in pairs)

        nearest = min(self._index, key=lambda known: (mismatches(known), repr(known)))
        differing = tuple(
            text for text in differences(wanted, nearest) if text.partition(":")[0] in FAMILY_FIELDS
        )
        reason = "no tuned key agrees in " + ", ".join(text.partition(":")[0] for text in differing)
        return Found(wanted, None, None, math.inf, reason, differing)

    def constants(self, device: str, phase: Phase = FORWARD) -> Constants | None:
        """The cost model's constants of a device for a phase, as calibrated here or shipped; None
        where it was calibrated nowhere."""
        folders = [self.folder / _CONSTANTS]
        folders += [self._shipped_folder / _CONSTANTS] if self._shipped_folder else []
        for folder in folders:
            path = folder / _constants_name(device, phase)
            try:
                content = records.decode(path.read_bytes(), CALIBRATION)
                if (content.get("device"), content.get("phase")) == (device, phase.name):
                    return constants_from(content.get("constants", {}))
            except FileNotFoundError:
                continue
            except UnreadableError as error:
                records.set_aside(path, str(error))
            except ConfigError as error:
                records.set_aside(path, error.message)
        return None

    # --------------------------------------------------------------------------------- writing

    def put_constants(self, device: str, constants: Constants, phase: Phase = FORWARD) -> Path:
        """Keeps the cost model's constants of a device for a phase.

        Raises:
            OSError: The folder cannot be written to.
        """
        path = self.folder / _CONSTANTS / _constants_name(device, phase)
        content = {"device": device, "phase": phase.name, "constants": asdict(constants)}
        records.write(path, CALIBRATION, content)
        return path

    def put(self, entry: Entry) -> Path:
        """Keeps an entry in the user's folder, in place of an older one for its key.

        Returns:
            Its file.

        Raises:
            OSError: The folder cannot be written to.
        """
        path = self.folder / _file_name(entry.key)
        records.write(path, KIND, entry.as_json())
        if entry.key in self._given or not self._reads_files:
            self._given[entry.key] = entry, "user"
        self._stamp = -1
        return path

    def require_writable(self) -> None:
        """Makes sure that results can be kept, before anything is measured.

        Raises:
            ConfigError: The folder cannot be made or written to.
        """
        probe = self.folder / f".{os.getpid()}.probe"
        try:
            records.write_text(probe, "")
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(
                f"results cannot be kept in {self.folder}: {error.strerror}",
                ("PATTERNCC_CACHE_DIR, set to a folder that can be written to",),
            ) from None

    def export(self, path: Path) -> int:
        """Writes this user's entries to one file, to take along; returns how many."""
        chosen = [entry for entry, origin in self.entries() if origin == "user"]
        write_collection(path, chosen)
        return len(chosen)

    def import_(self, path: Path) -> tuple[int, int]:
        """Takes in the entries of a file that `export` wrote, except where this user has one that
        was tuned for the same key.

        Returns:
            How many were taken in, and how many were there already.

        Raises:
            ConfigError: The file is none of ours; nothing is taken in then.
            OSError: It cannot be read.
        """
        try:
            found = tuple(decode_collection(path.read_bytes()))
        except UnreadableError as error:
            raise ConfigError(f"{path} cannot be imported: {error}") from None
        own = {entry.key for entry, origin in self.entries() if origin == "user"}
        new = [entry for entry in found if entry.key not in own]
        for entry in new:
            self.put(entry)
        return len(new), len(found) - len(new)

    def clear(self) -> tuple[int, int]:
        """Removes this user's entries, what was set aside, and studies that were broken off, whose
        times would else count in the next run. Constants of the cost model stay.

        Returns:
            How many entries, and how many other files.
        """
        self._refresh()
        paths = list(self.folder.glob("*.json"))
        others = [*self.aside(), *self.studies.glob("*.journal*")]
        for path in (*paths, *others):
            path.unlink(missing_ok=True)
        self._stamp = -1
        return len(paths), len(others)


def _constants_name(device: str, phase: Phase) -> str:
    return f"{records.slug(device)}-{records.slug(phase.name)}.json"


def _file_name(key: ConfigKey) -> str:
    """A name that tells a person what it is, and no two keys share."""
    words = (key.phase, key.device, key.pattern_class, key.dtype, str(key.head_dim))
    return f"{records.slug(' '.join(words))}-{records.digest(key.as_json())[:16]}.json"
