"""What a call gives for its score terms, and terms evaluated for rows: the logit of the sink and
its gradients.

Memory is a few numbers for each row of each head; nothing here looks at pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patterncc.codegen.elementwise import discrete
from patterncc.codegen.score.elementwise import RealEvaluator, flat_index
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.mask import IntExpr, Predicate, variables
from patterncc.dsl.score.nodes import Constant, Lookup, Real
from patterncc.dsl.score.terms import ScoreTerms

if TYPE_CHECKING:
    from patterncc.codegen.score.readings import Reading

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class ScoreValues:
    """What score terms read.

    Attributes:
        numbers: Run-time numbers by name.
        tables: Tables of real numbers by name, of any floating type.
    """

    numbers: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    tables: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))

    def check(self, terms: ScoreTerms, device: torch.device) -> None:
        """Refuses what the terms would misread.

        Raises:
            ArgumentError: A number or table is missing, or a table has another rank, type or
                device than it must have; names it.
        """
        for name in terms.numbers:
            if name not in self.numbers:
                raise ArgumentError(f"the score reads the number `{name}`, which was not given")
        for name, rank in terms.tables.items():
            if name not in self.tables:
                raise ArgumentError(f"the score reads the table `{name}`, which was not given")
            table = self.tables[name]
            if table.dtype not in _FLOATS:
                raise ArgumentError(
                    f"the table `{name}` is {table.dtype}; the score reads a floating type"
                )
            if table.dim() != rank:
                raise ArgumentError(
                    f"the table `{name}` has {table.dim()} axes; the score reads {rank}"
                )
            if table.device != device:
                raise ArgumentError(
                    f"the table `{name}` is on {table.device}; the other tensors are on {device}"
                )


NO_VALUES = ScoreValues()
_NOWHERE = torch.zeros((), dtype=torch.int64, device="cpu")  # a position that nothing reads


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a call.

    Attributes:
        batch, heads, kv_heads, q_len, kv_len: Its sizes.
        env: `q_offset`, and the other scalars that terms read.
    """

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    env: Mapping[str, int]

    @staticmethod
    def of(query: Tensor, key: Tensor, env: Mapping[str, int]) -> Rows:
        """Those of `[batch, heads, q_len, dim]` and `[batch, kv_heads, kv_len, dim]`."""
        batch, heads, q_len, _ = query.shape
        return Rows(batch, heads, key.shape[1], q_len, key.shape[2], env)

    @property
    def shape(self) -> tuple[int, int, int]:
        """`[batch, heads, q_len]`."""
        return self.batch, self.heads, self.q_len

    def evaluator(
        self,
        values: ScoreValues,
        like: Tensor,
        q: Tensor | None = None,
        k: Tensor | None = None,
        readings: Mapping[Lookup, Reading] = MappingProxyType({}),
    ) -> RealEvaluator:
        """Evaluates terms that do not read the score, for each head and each of some positions;
        results broadcast to `[batch, heads, positions]`.

        Args:
            values: What they read.
            like: Of the type and device of the results.
            q: Positions of queries, int64; those of the rows if not given.
            k: Of keys, of a shape that broadcasts with those; if not given, none is read.
            readings: Where entries are read, of those that it is known of.
        """
        device = like.device
        known: dict[str, Tensor] = {} if q is None else {"q": q}

        # Each operation costs a launch: what is not read is not made.
        def scalar(name: str) -> Tensor:
            if name not in known:
                known[name] = self._coordinate(name, device)
            return known[name]

        def found(expr: IntExpr | Predicate) -> Tensor:
            names = variables(expr)
            scope: dict[str, Any] = {name: scalar(name) for name in names - {"k"}}
            rows = scope.pop("q", _NOWHERE)
            value = discrete(expr, rows, rows if k is None else k, scope)
            if value.device == device:
                return value
            # A constant; a copy from the host would wait for the device.
            return torch.full((), value.item(), dtype=value.dtype, device=device)

        return RealEvaluator(None, found, values.numbers, values.tables, like, readings)

    def _positions(self, device: torch.device) -> Tensor:
        first = int(self.env["q_offset"])
        return torch.arange(first, first + self.q_len, device=device)

    def _coordinate(self, name: str, device: torch.device) -> Tensor:
        """A coordinate or size of all heads, made on the device, so that a CUDA graph can capture
        it."""
        match name:
            case "q":
                return self._positions(device)
            case "head":
                return torch.arange(self.heads, device=device)[:, None]
            case "kv_head":
                return torch.arange(self.heads, device=device)[:, None] // self._group
            case "batch":
                return torch.arange(self.batch, device=device)[:, None, None]
        sizes = {"q_len": self.q_len, "kv_len": self.kv_len}
        sizes |= {"heads": self.heads, "kv_heads": self.kv_heads}
        value = {"layer": 0, **self.env, **sizes}[name]
        return torch.full((), int(value), dtype=torch.int64, device=device)

    @property
    def _group(self) -> int:
        return self.heads // self.kv_heads


def sink_logits(terms: ScoreTerms, values: ScoreValues, rows: Rows, like: Tensor) -> Tensor:
    """The natural logits of the sink `[batch, heads, q_len]`, of type and device of `like`; -inf
    where there is no sink."""
    if terms.sink is None:
        return like.new_full(rows.shape, -torch.inf)
    found = rows.evaluator(values, like)(terms.sink)
    return found.broadcast_to(rows.shape).contiguous()


def add_sink_gradients(
    gradients: Mapping[str, Tensor],
    terms: ScoreTerms,
    values: ScoreValues,
    rows: Rows,
    lse: Tensor,
    delta: Tensor,
) -> None:
    """Adds what the sink hands to the gradients of tables, in a fixed order.

    A sink's weight is `exp(sink - lse)` and its value is 0, so its logit has the gradient
    `-exp(sink - lse) * delta`.

    Args:
        gradients: By table, those that are asked for; contiguous, float32 or float64.
        terms, values: The terms, and what they read.
        rows: The rows of the call.
        lse: The forward's logarithms, `[batch, heads, q_len]`.
        delta: `sum(grad_out * out) - grad_lse`, of that shape and type.
    """
    slopes = [(entry, slope) for entry, slope in terms.sink_slopes() if entry.table in gradients]
    if terms.sink is None or not slopes or lse.numel() == 0:
        return
    evaluate = rows.evaluator(values, lse)
    for entry, shares in sink_shares(terms.sink, slopes, evaluate, lse, delta):
        places, inside = evaluate.places(entry)
        add_at(gradients[entry.table], places, inside, shares)


def sink_shares(
    sink: Real,
    slopes: Iterable[tuple[Lookup, Real]],
    evaluate: RealEvaluator,
    lse: Tensor,
    delta: Tensor,
) -> Iterator[tuple[Lookup, Tensor]]:
    """What each row hands to the gradients of the entries that the sink reads.

    Args:
        sink: Its logit.
        slopes: The entries that it reads, with its derivatives by them.
        evaluate: Evaluates them for the rows.
        lse, delta: As of `add_sink_gradients`.

    Yields:
        An entry, and its shares `[batch, heads, q_len]`.
    """
    # A row with no key and a sink of -inf has an lse of -inf, too: its weight is 0.
    weights = (evaluate(sink) - lse.clamp_min(torch.finfo(lse.dtype).min)).exp_()
    by_logit = weights.mul_(delta).neg_()
    for entry, slope in slopes:
        yield entry, by_logit if slope == Constant(1.0) else by_logit * evaluate(slope)


def add_at(gradient: Tensor, places: tuple[Tensor, ...], inside: Tensor, shares: Tensor) -> None:
    """Adds shares to the entries of a table that they belong to, in a fixed order.

    Args:
        gradient: The table's gradient, contiguous.
        places: An index for each axis; they broadcast with `shares`.
        inside: Where those are inside of the table, of the shape that they broadcast to; shares
            elsewhere are dropped.
        shares: What to add.
    """
    if gradient.numel() == 0:
        return
    # First along axes on which all go to the same entry: fewer numbers to sort, and in the order
    # of a sum.
    shares = torch.where(inside, shares, 0)
    shape = (1,) * (shares.dim() - inside.dim()) + tuple(inside.shape)
    alone = [axis for axis in range(shares.dim()) if shape[axis] == 1]
    if alone:
        shares = shares.sum(alone, keepdim=True)
    numbers = shares.to(gradient.dtype).flatten()
    index = flat_index(places, gradient.shape).broadcast_to(shares.shape).flatten()
    # Of two functions that do the same, on each device the one that adds in order.
    if gradient.device.type == "cpu":
        gradient.view(-1).index_add_(0, index, numbers)
    else:
        gradient.view(-1).index_put_((index,), numbers, accumulate=True)
