"""Plans for all heads of a call: one for those that see the same, kept between calls."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from threading import Lock
from typing import Any, TypeAlias

from patterncc.codegen.classes import RowClass, row_classes
from patterncc.codegen.cpu.head_kinds import PER_HEAD, Trait, kind, traits
from patterncc.codegen.cpu.plan import Plan, make_plan
from patterncc.codegen.cpu.tiles import MaskedTiles, masked_tiles
from patterncc.codegen.ir import Q_CLASS, Q_FIRST, Q_LAST, RESIDUE, BlockProgram
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.mask import Entry, Expr, K, Member, Param, Q, Segment, Var, walk

_MOST_KEPT = 1024  # entries, however small: a call of a program with a tiling has several
_ALWAYS = frozenset({"q_len", "kv_len", "q_offset", "heads", "kv_heads"})

# What expressions read that is no number of a call or of one class of its rows.
_NOT_OF_A_CALL = frozenset(var.name for var in (Q, K, Q_FIRST, Q_LAST, RESIDUE))

# An index in the batch and a query head; `None` stands for all.
Place: TypeAlias = tuple[int | None, int | None]


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """A plan and the heads it is for, by index in the batch and then by head."""

    plan: Plan
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class _Kept:
    program: BlockProgram
    plans: tuple[HeadPlan, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Reads:
    """What a program reads, found once.

    Attributes:
        program: Held, so that its identity stays its own.
        digest: Of the program.
        scalars: Names of the numbers, coordinates and lengths.
        tables: Names of the tables and segments.
        traits: What tells its heads apart.
        of_class: As `scalars`, of what tells the keys of a class of rows.
    """

    program: BlockProgram
    digest: int
    scalars: frozenset[str]
    tables: tuple[str, ...]
    traits: tuple[Trait, ...]
    of_class: frozenset[str]

    @staticmethod
    def of(program: BlockProgram) -> "_Reads":
        parts = [*_expressions(program)]
        scalars, tables = _names(parts)
        of_class, more_tables = _names([program.tiling.k_class])
        return _Reads(
            program,
            hash(program),
            scalars,
            tuple(sorted(tables | more_tables)),
            traits(parts) if scalars & PER_HEAD else (),
            of_class - {Q_CLASS.name},
        )

    def check(self, names: Iterable[str], env: Mapping[str, Any]) -> None:
        missing = sorted({*names, *self.tables} - env.keys() - PER_HEAD)
        if missing:
            raise ArgumentError(f"the pattern reads `{missing[0]}`, which was not given")


class PlanStore:
    """The plans of recent calls, up to a number of bytes; the least recently used go first.

    A table is known by a digest of its elements: it may have changed in place since the last call,
    and a long one is not worth keeping.

    Attributes:
        nbytes: Held now.
        misses: How often plans had to be made.
    """

    def __init__(self, limit: int = 64 << 20) -> None:
        self.nbytes = 0
        self.misses = 0
        self._limit = limit
        self._lock = Lock()
        self._kept: OrderedDict[tuple[object, ...], _Kept] = OrderedDict()
        # By identity, as hashing a whole program takes longer than a small call.
        self._reads: OrderedDict[int, _Reads] = OrderedDict()

    def find(
        self,
        program: BlockProgram,
        env: Mapping[str, Any],
        batch: int,
        *,
        digests: Mapping[str, bytes] | None = None,
        places: tuple[Place, ...] | None = None,
    ) -> tuple[HeadPlan, ...]:
        """The plans of a call, or of one class of its rows; made if they are not kept.

        Args:
            program: A lowered pattern, or one pass of it.
            env: `q_len`, `kv_len`, `q_offset`, `heads`, `kv_heads`, and what else the program
                reads besides `head`, `kv_head` and `batch`; tables as arrays. Within a class where
                the program has a tiling.
            batch: Size of the batch.
            digests: For each of the tables, equal where the elements are.
            places: The heads that are asked for; all if not given.

        Raises:
            ArgumentError: A scalar or a table is missing.
            ConfigError: The call breaks what the program takes for granted.
        """
        reads = self._reads_of(program)
        reads.check(reads.scalars, env)
        names = sorted((reads.scalars - PER_HEAD) | _ALWAYS)
        known = digests or {}
        place = (
            reads.digest,
            places,
            batch if "batch" in reads.scalars else 0,
            tuple((name, int(env[name])) for name in names),
            tuple((name, known[name]) for name in reads.tables),
        )
        with self._lock:
            kept = self._kept.get(place)
            if kept is not None and (kept.program is program or kept.program == program):
                self._kept.move_to_end(place)
                return kept.plans
            self.misses += 1
        scope = {name: env[name] for name in (*names, *reads.tables)}
        plans = _make(reads, scope, places or _places(reads.scalars, env["heads"], batch))
        nbytes = sum(part.plan.nbytes + 100 * len(part.places) for part in plans)
        with self._lock:
            self._drop(place)
            if nbytes <= self._limit:
                self._kept[place] = _Kept(program, plans, nbytes)
                self.nbytes += nbytes
            while self.nbytes > self._limit or len(self._kept) > _MOST_KEPT:
                self._drop(next(iter(self._kept)))
        return plans

    def classes(
        self, program: BlockProgram, env: Mapping[str, Any], batch: int
    ) -> Iterator[tuple[RowClass, tuple[Place, ...] | None]]:
        """The classes of rows of a call, each with the heads whose keys it has; `None` for all.

        Arguments and errors as in `find`, `env` being that of the call.
        """
        reads = self._reads_of(program)
        reads.check(reads.of_class, env)
        if reads.of_class.isdisjoint(PER_HEAD):
            for rows in row_classes(program, env):
                yield rows, None
            return
        telling = traits([program.tiling.k_class], Q_CLASS)
        kinds: dict[tuple[object, ...], tuple[dict[str, Any], list[Place]]] = {}
        for place in _places(reads.scalars | reads.of_class, env["heads"], batch):
            own = _own(place, env)
            kinds.setdefault(kind(telling, own), (own, []))[1].append(place)
        for own, places in kinds.values():
            for rows in row_classes(program, own):
                yield rows, tuple(places)

    def tables(self, program: BlockProgram) -> tuple[str, ...]:
        """Names of the tables and segments that a program reads."""
        return self._reads_of(program).tables

    def clear(self) -> None:
        """Forgets all plans."""
        with self._lock:
            self._kept.clear()
            self._reads.clear()
            self.nbytes = 0

    def _drop(self, place: tuple[object, ...]) -> None:
        kept = self._kept.pop(place, None)
        self.nbytes -= 0 if kept is None else kept.nbytes

    def _reads_of(self, program: BlockProgram) -> _Reads:
        with self._lock:
            known = self._reads.get(id(program))
            if known is None:
                known = self._reads[id(program)] = _Reads.of(program)
                if len(self._reads) > _MOST_KEPT:
                    self._reads.popitem(last=False)
        return known


def _names(exprs: Iterable[Expr]) -> tuple[frozenset[str], frozenset[str]]:
    """The numbers of a call, and the tables and segments, that expressions read."""
    nodes = [node for expr in exprs for node in walk(expr)]
    scalars = {node.name for node in nodes if isinstance(node, Var | Param)}
    tables = {node.table for node in nodes if isinstance(node, Entry | Member)}
    tables |= {node.segments for node in nodes if isinstance(node, Segment)}
    return frozenset(scalars - _NOT_OF_A_CALL), frozenset(tables)


def _expressions(program: BlockProgram) -> Iterable[Expr]:
    """The mask and all that decides which tiles are visited."""
    yield program.mask
    yield program.assume
    for sweep in program.forward:
        yield from sweep.bounds


def _places(reads: frozenset[str], heads: int, batch: int) -> tuple[Place, ...]:
    """All heads, told apart as far as what is read may differ."""
    indexes: list[int | None] = [*range(batch)] if "batch" in reads else [None]
    own: list[int | None] = [None] if reads.isdisjoint({"head", "kv_head"}) else [*range(heads)]
    return tuple(product(indexes, own))


def _own(place: Place, env: Mapping[str, Any]) -> dict[str, Any]:
    """The scalars of a head."""
    index, head = place
    group = env["heads"] // env["kv_heads"]
    return {**env, "batch": index or 0, "head": head or 0, "kv_head": (head or 0) // group}


def _make(reads: _Reads, env: Mapping[str, Any], places: Iterable[Place]) -> tuple[HeadPlan, ...]:
    """Plans for heads, one for those that visit the same tiles under the same masks."""
    kinds: dict[tuple[object, ...], tuple[dict[str, Any], list[Place]]] = {}
    for place in places:
        own = _own(place, env)
        kinds.setdefault(kind(reads.traits, own), (own, []))[1].append(place)
    seen: dict[tuple[bytes, ...], tuple[MaskedTiles, list[Place]]] = {}
    for own, alike in kinds.values():
        tiles = masked_tiles(reads.program, own)
        seen.setdefault(tiles.content(), (tiles, []))[1].extend(alike)
    return tuple(
        HeadPlan(
            make_plan(tiles, env["q_len"], env["kv_len"]),
            tuple(sorted(alike, key=lambda place: (place[0] or 0, place[1] or 0))),
        )
        for tiles, alike in seen.values()
    )
