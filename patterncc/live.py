"""How many keys a cache must keep: the live keys of the heads of a model, counted at some times.

`LiveReport` holds plain numbers; `patterncc.live_text` makes text of them. Loads no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from patterncc.codegen.facts import liveness
from patterncc.codegen.facts.liveness import Bound, LiveSet
from patterncc.dsl.build import any_of
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import Predicate, variables
from patterncc.dsl.pattern import Pattern

MOST_TIME = 1 << 24  # largest time at which keys are counted
SETS_KEPT = 256

_COORDINATES = ("layer", "head", "kv_head")


@dataclass(frozen=True, slots=True)
class Count:
    """The live keys at one time.

    Attributes:
        t: The time.
        keys: Keys from 0 to t that are live.
        pages: Pages that hold one of them.
        all_pages: Pages that hold the keys from 0 to t.
    """

    t: int
    keys: int
    pages: int
    all_pages: int


@dataclass(frozen=True, slots=True)
class LiveGroup:
    """Key/value heads whose live keys are the same at every time that was looked at.

    Attributes:
        members: Pairs of a layer and a key/value head, both from 0.
        counts: One for each time.
        growth: Whether the number of live keys is `bounded` for ever or grows without end
            (`unbounded`); `unknown` where that was not decided.
        bound: A number that a bounded set does not exceed, if its ends are short enough to count.
    """

    members: tuple[tuple[int, int], ...]
    counts: tuple[Count, ...]
    growth: Literal["bounded", "unbounded", "unknown"]
    bound: Bound | None


@dataclass(frozen=True, slots=True)
class LiveReport:
    """The live keys of a pattern.

    Attributes:
        form: Which keys `k` are live at time `t`, in one query head; may read `layer` and `head`.
        page_size: Keys of a page.
        kv_len: Length of the calls to come, where it is given.
        groups: The key/value heads looked at. A key is live for one of them if it is for one of
            the query heads that share it.
    """

    form: Predicate
    page_size: int
    kv_len: int | None
    groups: tuple[LiveGroup, ...]

    def as_json(self) -> dict[str, Any]:
        """The numbers as what `json.dumps` takes."""
        return {
            "page_size": self.page_size,
            "kv_len": self.kv_len,
            "groups": [
                {
                    "members": [list(member) for member in group.members],
                    "counts": [asdict(count) for count in group.counts],
                    "growth": group.growth,
                    "bound": None if group.bound is None else asdict(group.bound),
                }
                for group in self.groups
            ],
        }


def report(
    pattern: Pattern,
    sizes: Mapping[str, int],
    times: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    kv_heads: Sequence[int] | None = None,
    page_size: int = 16,
    kv_len: int | None = None,
    batch: int = 0,
) -> LiveReport:
    """Counts the live keys of a model's heads.

    Args:
        pattern: Its run-time numbers have values.
        sizes: `heads`, `kv_heads`, `layers`.
        times: When to count.
        layers: Layers to look at; all if not given.
        kv_heads: Key/value heads to look at; all if not given.
        page_size: Keys of a page.
        kv_len: The length of all calls to come; not bounded if not given.
        batch: Index in the batch.

    Raises:
        ConfigError: A time is not in 0 .. `MOST_TIME`, or not before `kv_len`.
        UnsupportedError: The live set is not known; the message says why.
    """
    last = MOST_TIME if kv_len is None else min(kv_len - 1, MOST_TIME)
    for t in times:
        if not 0 <= t <= last:
            raise ConfigError(f"time {t} is not in 0 .. {last}")
    live = live_set(pattern, {**sizes, "batch": batch}, kv_len)
    share = sizes["heads"] // sizes["kv_heads"]
    forms: dict[Predicate, list[tuple[int, int]]] = {}
    for layer in range(sizes["layers"]) if layers is None else layers:
        for kv_head in range(sizes["kv_heads"]) if kv_heads is None else kv_heads:
            heads = range(kv_head * share, (kv_head + 1) * share)
            places = ({"layer": layer, "head": head, "kv_head": kv_head} for head in heads)
            form = any_of(*dict.fromkeys(live.at(place).form for place in places))
            forms.setdefault(form, []).append((layer, kv_head))
    groups: dict[tuple[Count, ...], list[tuple[int, int]]] = {}
    first: dict[tuple[Count, ...], Predicate] = {}
    vectors: dict[bytes, tuple[Count, ...]] = {}
    for form, members in forms.items():
        keys = [LiveSet(form).keys(t, {}) for t in times]
        digest = b"".join(np.packbits(each).tobytes() for each in keys)
        counts = tuple(count(each, page_size) for each in keys)
        key = vectors.setdefault(digest, counts)
        groups.setdefault(key, []).extend(members)
        first.setdefault(key, form)
    return LiveReport(
        live.form,
        page_size,
        kv_len,
        tuple(
            LiveGroup(tuple(members), counts, *_growth(LiveSet(first[counts]), kv_len))
            for counts, members in groups.items()
        ),
    )


def live_set(pattern: Pattern, given: Mapping[str, int], kv_len: int | None) -> LiveSet:
    """The live set of a pattern, its run-time numbers at their values, kept for those used last.

    Raises:
        UnsupportedError: It is not known; the message says why.
    """
    numbers = pattern.defaults
    reads = variables(pattern.body)
    sizes = {name: value for name, value in given.items() if name in reads}
    return _live_set(pattern, tuple(sorted({**numbers, **sizes}.items())), kv_len)


@lru_cache(maxsize=SETS_KEPT)
def _live_set(pattern: Pattern, values: tuple[tuple[str, int], ...], kv_len: int | None) -> LiveSet:
    return liveness.live_set(pattern, values=dict(values), kv_len=kv_len)


def count(keys: npt.NDArray[np.bool_], page_size: int) -> Count:
    """Counts live keys, bool `[t + 1]`, and the pages that hold them."""
    starts = np.arange(0, len(keys), page_size)
    pages = np.add.reduceat(keys, starts, dtype=np.int64)
    return Count(len(keys) - 1, int(keys.sum()), int(np.count_nonzero(pages)), len(starts))


def _growth(
    live: LiveSet, kv_len: int | None
) -> tuple[Literal["bounded", "unbounded", "unknown"], Bound | None]:
    if kv_len is not None:
        return "bounded", None
    try:
        return liveness.growth(live)
    except UnsupportedError:
        return "unknown", None
