"""Plans for all heads of a call: one for those that see the same, kept between calls."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from threading import Lock
from typing import TypeAlias

from patterncc.codegen.cpu_plan import Plan, make_plan
from patterncc.codegen.cpu_tiles import MaskedTiles, masked_tiles
from patterncc.codegen.ir import Q_FIRST, Q_LAST, RESIDUE, BlockProgram
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.mask import Expr, Param, Var, walk

_MOST_KEPT = 256  # entries, however small
_PER_HEAD = frozenset({"head", "kv_head", "batch"})
_ALWAYS = frozenset({"q_len", "kv_len", "q_offset", "heads", "kv_heads"})

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


class PlanStore:
    """The plans of recent calls, up to a number of bytes; the least recently used go first.

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
        # By identity, as hashing a whole program takes longer than a small call; each entry holds
        # its program, so that the identity stays its own.
        self._reads: OrderedDict[int, tuple[BlockProgram, frozenset[str]]] = OrderedDict()

    def find(
        self, program: BlockProgram, scalars: Mapping[str, int], batch: int
    ) -> tuple[HeadPlan, ...]:
        """The plans of a call, made if they are not kept.

        Args:
            program: A lowered pattern.
            scalars: `q_len`, `kv_len`, `q_offset`, `heads`, `kv_heads`, and what else the program
                reads besides `head`, `kv_head` and `batch`.
            batch: Size of the batch.

        Raises:
            ArgumentError: A scalar is missing.
            ConfigError: The call breaks what the program takes for granted.
        """
        reads = self._names(program)
        missing = sorted(reads - scalars.keys() - _PER_HEAD)
        if missing:
            raise ArgumentError(f"the pattern reads `{missing[0]}`, which was not given")
        names = sorted((reads & scalars.keys()) | _ALWAYS)
        place = (
            program.structure,
            program.block_q,
            program.block_k,
            batch if "batch" in reads else 0,
            tuple((name, scalars[name]) for name in names),
        )
        with self._lock:
            kept = self._kept.get(place)
            if kept is not None and (kept.program is program or kept.program == program):
                self._kept.move_to_end(place)
                return kept.plans
            self.misses += 1
        plans = _make(program, {name: int(scalars[name]) for name in names}, batch, reads)
        nbytes = sum(part.plan.nbytes for part in plans)
        with self._lock:
            self._drop(place)
            if nbytes <= self._limit:
                self._kept[place] = _Kept(program, plans, nbytes)
                self.nbytes += nbytes
            while self.nbytes > self._limit or len(self._kept) > _MOST_KEPT:
                self._drop(next(iter(self._kept)))
        return plans

    def clear(self) -> None:
        """Forgets all plans."""
        with self._lock:
            self._kept.clear()
            self._reads.clear()
            self.nbytes = 0

    def _drop(self, place: tuple[object, ...]) -> None:
        kept = self._kept.pop(place, None)
        self.nbytes -= 0 if kept is None else kept.nbytes

    def _names(self, program: BlockProgram) -> frozenset[str]:
        """The scalars that a program reads."""
        with self._lock:
            known = self._reads.get(id(program))
            if known is None:
                known = self._reads[id(program)] = program, _scalars(program)
                if len(self._reads) > _MOST_KEPT:
                    self._reads.popitem(last=False)
        return known[1]


def _scalars(program: BlockProgram) -> frozenset[str]:
    """Names of the scalars that the mask and the forward bounds read."""
    parts: list[Expr] = [program.mask, program.assume]
    for sweep in program.forward:
        parts += [sweep.lo, sweep.hi, sweep.guard, sweep.phase]
    names = {node.name for part in parts for node in walk(part) if isinstance(node, Var | Param)}
    return frozenset(names - {"q", "k", Q_FIRST.name, Q_LAST.name, RESIDUE.name})


def _make(
    program: BlockProgram, scalars: Mapping[str, int], batch: int, reads: frozenset[str]
) -> tuple[HeadPlan, ...]:
    """Plans for all heads, one for those that visit the same tiles under the same masks."""
    group = scalars["heads"] // scalars["kv_heads"]
    batches: list[int | None] = [*range(batch)] if "batch" in reads else [None]
    heads: list[int | None] = [None]
    if not reads.isdisjoint({"head", "kv_head"}):
        heads = [*range(scalars["heads"])]
    seen: dict[tuple[bytes, ...], tuple[MaskedTiles, list[Place]]] = {}
    for place in product(batches, heads):
        index, head = place
        own = {"batch": index or 0, "head": head or 0, "kv_head": (head or 0) // group}
        tiles = masked_tiles(program, {**scalars, **own})
        seen.setdefault(tiles.content(), (tiles, []))[1].append(place)
    return tuple(
        HeadPlan(make_plan(tiles, scalars["q_len"], scalars["kv_len"]), tuple(places))
        for tiles, places in seen.values()
    )
