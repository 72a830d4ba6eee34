"""Context parallelism: which keys each rank needs, from which other ranks, and what that costs.

The sequence is cut into shards; a rank holds the queries and the keys of its shard and fetches the
keys of others that its queries read. Every rank can compute the same plan for itself: it follows
from the relation, projected over the queries of a rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from patterncc.codegen import schedule
from patterncc.codegen.facts import calls
from patterncc.codegen.facts.counts import BYTES
from patterncc.codegen.facts.questions import ask
from patterncc.codegen.facts.runs import Run, runs_of
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.lower import lower
from patterncc.codegen.presburger.images import Image
from patterncc.codegen.problem import Problem
from patterncc.codegen.schedule import evaluate
from patterncc.dsl.build import (
    add,
    all_of,
    any_of,
    compare,
    floordiv,
    modulo,
    multiply,
    substitute,
    subtract,
)
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import (
    Const,
    Expr,
    IntExpr,
    K,
    Param,
    Predicate,
    Q,
    Var,
    parameters,
    variables,
)
from patterncc.dsl.pattern import Pattern

Placement: TypeAlias = Literal["contiguous", "zigzag", "striped"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)

Kind: TypeAlias = Literal["local", "broadcast", "halo", "halo+broadcast", "all-gather", "exchange"]

RANK = Var("rank")
MOST_RANKS = 1024
MOST_POSITIONS = 1 << 28  # ranks times tokens

Member: TypeAlias = tuple[int, int]  # a layer and a key/value head, both from 0


@dataclass(frozen=True, slots=True)
class Shards:
    """How the tokens of a sequence are dealt out.

    Attributes:
        ranks: How many ranks there are.
        q_len: Tokens of the whole sequence, all of them queries and keys.
        placement: `contiguous`: a block of `ceil(q_len / ranks)` tokens each. `zigzag`: the
            sequence in `2 * ranks` chunks, and rank p has chunk p from the front and chunk p from
            the back, which balances causal work. `striped`: stripes dealt out in turn.
        stripe: Tokens of a stripe.
    """

    ranks: int
    q_len: int
    placement: Placement = "contiguous"
    stripe: int = 1

    def holds(self, position: IntExpr) -> Predicate:
        """Whether `RANK` holds the token at a position of the sequence."""
        if self.placement == "striped":
            turn = modulo(floordiv(position, Const(self.stripe)), Const(self.ranks))
            return compare("==", turn, RANK)
        if self.placement == "contiguous":
            return _in_chunk(position, RANK, -(-self.q_len // self.ranks))
        chunk = -(-self.q_len // (2 * self.ranks))
        back = subtract(Const(2 * self.ranks - 1), RANK)
        return any_of(_in_chunk(position, RANK, chunk), _in_chunk(position, back, chunk))

    def owners(self) -> npt.NDArray[np.int64]:
        """The rank that holds each token, int64 `[q_len]`."""
        token = np.arange(self.q_len, dtype=np.int64)
        match self.placement:
            case "striped":
                return token // self.stripe % self.ranks
            case "contiguous":
                return token // -(-self.q_len // self.ranks)
            case "zigzag":
                chunk = token // -(-self.q_len // (2 * self.ranks))
                return np.minimum(chunk, 2 * self.ranks - 1 - chunk)


def _in_chunk(position: IntExpr, number: IntExpr, size: int) -> Predicate:
    low = multiply(Const(size), number)
    return all_of(compare("<=", low, position), compare("<", position, add(low, Const(size))))


@dataclass(frozen=True, slots=True)
class Transfer:
    """Keys that a rank fetches from another.

    Attributes:
        source: The rank that holds them.
        keys: How many they are.
        runs: Which they are, positions of the whole sequence.
    """

    source: int
    keys: int
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class RankPlan:
    """What one rank does for one mask.

    Attributes:
        rank: The rank.
        tokens: Tokens that it holds.
        local: Keys that it reads of its own.
        transfers: What it fetches, by rising source.
        pairs: Visible pairs of its queries, those of all query heads of one key/value head
            together; `None` where the pattern cannot be lowered to count them.
    """

    rank: int
    tokens: int
    local: int
    transfers: tuple[Transfer, ...]
    pairs: int | None

    @property
    def received(self) -> int:
        """Keys that it fetches."""
        return sum(transfer.keys for transfer in self.transfers)


@dataclass(frozen=True, slots=True)
class ShardGroup:
    """Key/value heads of layers whose ranks need the same.

    Attributes:
        members: Pairs of a layer and a key/value head.
        kind: `local`: nothing is fetched; `broadcast`: all fetch the same keys; `halo`: only from
            ranks that are near by number, fewer than half of all; `all-gather`: all need all;
            `exchange`: anything else.
        ranks: One plan a rank.
        needs: Which keys `RANK` reads, as a predicate of `k` and `rank`.
    """

    members: tuple[Member, ...]
    kind: Kind
    ranks: tuple[RankPlan, ...]
    needs: Predicate

    @property
    def received(self) -> tuple[int, ...]:
        """Keys that each rank fetches for one member."""
        return tuple(plan.received for plan in self.ranks)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Which keys each rank fetches from which others, for all layers and heads of a model.

    Attributes:
        shards: How tokens are dealt out.
        problem: Head sizes and type, for bytes.
        groups: One for each set of needs.
    """

    shards: Shards
    problem: Problem
    groups: tuple[ShardGroup, ...]

    @property
    def key_bytes(self) -> int:
        """Bytes of one key and its value in one head."""
        return BYTES[self.problem.dtype] * (self.problem.head_dim + self.problem.value_head_dim)

    @property
    def received_bytes(self) -> tuple[int, ...]:
        """Bytes of keys and values that each rank fetches in a forward pass through all layers; the
        gradients of the backward pass are as many, in the other direction.
        """
        return tuple(
            self.key_bytes * sum(len(group.members) * group.received[rank] for group in self.groups)
            for rank in range(self.shards.ranks)
        )

    @property
    def all_gather_bytes(self) -> tuple[int, ...]:
        """Bytes that each rank would fetch if it gathered every key of every head."""
        members = sum(len(group.members) for group in self.groups)
        held = np.bincount(self.shards.owners(), minlength=self.shards.ranks)
        return tuple(self.key_bytes * members * int(self.shards.q_len - own) for own in held)

    @property
    def pairs(self) -> tuple[int, ...] | None:
        """Visible pairs of each rank in all layers and heads; `None` where they are not known."""
        totals = [0] * self.shards.ranks
        for group in self.groups:
            for plan in group.ranks:
                if plan.pairs is None:
                    return None
                totals[plan.rank] += len(group.members) * plan.pairs
        return tuple(totals)

    @property
    def imbalance(self) -> float | None:
        """Pairs of the busiest rank over their mean; `None` where they are not known or none."""
        pairs = self.pairs
        return max(pairs) * len(pairs) / sum(pairs) if pairs and sum(pairs) else None


def shard_plan(
    pattern: Pattern,
    shards: Shards,
    problem: Problem,
    sizes: Mapping[str, int],
    *,
    layers: Sequence[int] | None = None,
    batch: int = 0,
    visible: VisiblePairs | None = None,
) -> ShardPlan:
    """Plans the exchange of keys for a whole sequence.

    Args:
        pattern: Its run-time numbers have values.
        shards: How tokens are dealt out.
        problem: Head sizes and type, for bytes; `group` is not read.
        sizes: `heads`, `kv_heads`, `layers`.
        layers: Layers to plan for; all if not given.
        batch: Index in the batch.
        visible: Counts of the same pattern, length, sizes and batch, where plans share them.

    Raises:
        ConfigError: There are no or too many ranks or tokens, or a number has no value.
        UnsupportedError: A term is outside what can be computed with exactly, or a computation
            outgrows its budget.
    """
    _check(shards)
    values = _values(pattern, shards.q_len, sizes, batch)
    body = _put_in(pattern.body, values)
    if open_numbers := sorted(parameters(body)):
        raise ConfigError(f"`{open_numbers[0]}` has no value")
    general = ask([body, shards.holds(Q)], _needs, body, shards)
    visible = visible or VisiblePairs(pattern, shards.q_len, sizes, batch)
    owners = shards.owners()
    share = sizes["heads"] // sizes["kv_heads"]
    planned: dict[Predicate, tuple[bytes, list[npt.NDArray[np.bool_]]]] = {}
    groups: dict[tuple[bytes, tuple[int, ...] | None], _Collected] = {}
    for layer in range(sizes["layers"]) if layers is None else layers:
        for kv_head in range(sizes["kv_heads"]):
            heads = range(kv_head * share, (kv_head + 1) * share)
            places = [{"layer": layer, "head": head, "kv_head": kv_head} for head in heads]
            form = any_of(*dict.fromkeys(_put_in(general, place) for place in places))
            if form not in planned:
                needed = [_read(form, rank, shards) for rank in range(shards.ranks)]
                digest = b"".join(np.packbits(each).tobytes() for each in needed)
                planned[form] = digest, needed
            pairs = visible.by_rank(places, owners, shards.ranks)
            key = (planned[form][0], pairs)
            groups.setdefault(key, _Collected(form, planned[form][1], pairs, [])).members.append(
                (layer, kv_head)
            )
    return ShardPlan(
        shards,
        problem,
        tuple(group.planned(shards, owners) for group in groups.values()),
    )


def _check(shards: Shards) -> None:
    for name, value, most in (
        ("ranks", shards.ranks, MOST_RANKS),
        ("q_len", shards.q_len, MOST_POSITIONS),
        ("stripe", shards.stripe, MOST_POSITIONS),
    ):
        if not 1 <= value <= most:
            raise ConfigError(f"{name} is {value}, which must be in 1 .. {most}")
    if shards.placement not in PLACEMENTS:
        raise ConfigError(f"placement is {shards.placement!r}", PLACEMENTS)
    if shards.ranks * shards.q_len > MOST_POSITIONS:
        raise ConfigError(
            f"{shards.ranks} ranks of {shards.q_len} tokens are more than can be planned for: "
            f"their product is at most {MOST_POSITIONS}"
        )


def _put_in(expr: Predicate, values: Mapping[str, int]) -> Predicate:
    replace: dict[Expr, IntExpr] = {}
    for name, value in values.items():
        replace[Var(name)] = replace[Param(name)] = Const(value)
    return substitute(expr, replace)


def _needs(body: Predicate, shards: Shards) -> Predicate:
    """Which keys `RANK` reads, as a predicate of `k`, `rank`, `layer` and the heads."""
    exists = all_of(compare("<=", Const(0), K), compare("<", K, Const(shards.q_len)))
    readers = all_of(
        compare("<=", Const(0), Q), compare("<", Q, Const(shards.q_len)), shards.holds(Q)
    )
    given = all_of(
        exists,
        compare("<=", Const(0), RANK),
        compare("<", RANK, Const(shards.ranks)),
        *(calls.at_least(Var(name), 0) for name in sorted(variables(body) - {"q", "k"})),
    )
    return Image(body, readers, given).closed_form()


def _read(form: Predicate, rank: int, shards: Shards) -> npt.NDArray[np.bool_]:
    """Which keys a rank reads, bool `[q_len]`."""
    scope = {"k": np.arange(shards.q_len, dtype=np.int64), RANK.name: rank}
    return np.broadcast_to(np.asarray(evaluate(form, scope), dtype=bool), (shards.q_len,))


def _values(pattern: Pattern, q_len: int, sizes: Mapping[str, int], batch: int) -> dict[str, int]:
    """What has one value in the whole plan, by name."""
    numbers = pattern.defaults
    return {**numbers, **sizes, "batch": batch, "q_len": q_len, "kv_len": q_len}


class VisiblePairs:
    """Counts the visible pairs of ranks, each mask once; knows where a pattern cannot be lowered
    to count them.

    Args:
        pattern: Its run-time numbers have values.
        q_len: Tokens of the sequence.
        sizes: `heads`, `kv_heads`, `layers`.
        batch: Index in the batch.
    """

    def __init__(
        self, pattern: Pattern, q_len: int, sizes: Mapping[str, int], batch: int = 0
    ) -> None:
        self._pattern = pattern
        self._env = {**_values(pattern, q_len, sizes, batch), "q_offset": 0}
        self._counts: dict[Predicate, npt.NDArray[np.int64]] = {}
        self._lowered: BlockProgram | None = None
        with suppress(UnsupportedError):
            self._lowered = lower(pattern, 1, 1, sizes=sizes, within=True, transposed=False)

    def by_rank(
        self, places: Sequence[Mapping[str, int]], owners: npt.NDArray[np.int64], ranks: int
    ) -> tuple[int, ...] | None:
        """Pairs of each rank in some heads together; `None` where they are not known."""
        if self._lowered is None:
            return None
        total = np.zeros(len(owners), dtype=np.int64)
        for place in places:
            body = _put_in(self._pattern.body, place)
            if body not in self._counts:
                full, partial = schedule.tile_counts(self._lowered, {**self._env, **place})
                if partial.any():  # too intricate: what is in these tiles is up to the mask
                    self._lowered = None
                    return None
                self._counts[body] = full
            total = total + self._counts[body]
        # Sums of doubles would round above 2**53.
        result = np.zeros(ranks, dtype=np.int64)
        np.add.at(result, owners, total)
        return tuple(result.tolist())


@dataclass(frozen=True, slots=True)
class _Collected:
    """Members with the same needs, before they are planned."""

    form: Predicate
    needed: list[npt.NDArray[np.bool_]]
    pairs: tuple[int, ...] | None
    members: list[Member]

    def planned(self, shards: Shards, owners: npt.NDArray[np.int64]) -> ShardGroup:
        plans = []
        for rank in range(shards.ranks):
            needed = self.needed[rank]
            read = np.bincount(owners[needed], minlength=shards.ranks)
            transfers = tuple(
                Transfer(source, int(read[source]), runs_of(needed & (owners == source)))
                for source in range(shards.ranks)
                if source != rank and read[source]
            )
            plans.append(
                RankPlan(
                    rank,
                    int(np.count_nonzero(owners == rank)),
                    int(read[rank]),
                    transfers,
                    None if self.pairs is None else self.pairs[rank],
                )
            )
        kind = _kind(shards, owners, self.needed)
        return ShardGroup(tuple(self.members), kind, tuple(plans), self.form)


def _kind(
    shards: Shards, owners: npt.NDArray[np.int64], needed: Sequence[npt.NDArray[np.bool_]]
) -> Kind:
    """The shape of an exchange."""
    fetched = [need & (owners != rank) for rank, need in enumerate(needed)]
    if not any(each.any() for each in fetched):
        return "local"
    # Fetched by every rank that does not hold it.
    readers: npt.NDArray[np.int64] = np.stack(fetched).sum(axis=0, dtype=np.int64)
    shared = readers == shards.ranks - 1
    if shared.all():
        return "all-gather"
    distances = {
        abs(rank - int(source))
        for rank, each in enumerate(fetched)
        for source in np.unique(owners[each & ~shared])
    }
    if not distances:
        return "broadcast"
    if 2 * max(distances) >= shards.ranks:
        return "exchange"
    return "halo+broadcast" if (readers[shared] > 0).any() else "halo"
