"""Which keys a cache must keep: those that a query at or after some time may still read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from patterncc.codegen.facts import calls
from patterncc.codegen.facts.questions import ask
from patterncc.codegen.presburger.images import Image, farthest_from_both_ends
from patterncc.codegen.schedule import evaluate
from patterncc.dsl.build import all_of, compare, substitute, subtract
from patterncc.dsl.errors import ConfigError
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

TIME = Var("t")  # the position of the query that comes next

MOST_COUNTED = 1 << 22  # keys up to which an end of the live set is counted one by one


@dataclass(frozen=True, slots=True)
class LiveSet:
    """The keys `0 <= k <= t` that some query at `t` or later may read, for every `t`.

    Attributes:
        form: The set as a predicate of `k`, `t`, the coordinates and sizes that the pattern reads
            and the run-time numbers that were left open. Exact where `0 <= k <= t`.
    """

    form: Predicate

    def keys(self, t: int, env: Mapping[str, int]) -> npt.NDArray[np.bool_]:
        """Whether each key is live, bool `[t + 1]`.

        Args:
            t: The time.
            env: What else the form reads, by name.
        """
        scope = {**env, "t": t, "k": np.arange(t + 1, dtype=np.int64)}
        return np.broadcast_to(np.asarray(evaluate(self.form, scope), dtype=bool), (t + 1,))

    def at(self, values: Mapping[str, int]) -> LiveSet:
        """The live set with values for some of what it reads."""
        replace: dict[Expr, IntExpr] = {}
        for name, value in values.items():
            replace[Var(name)] = replace[Param(name)] = Const(value)
        return LiveSet(substitute(self.form, replace))


def live_set(
    pattern: Pattern,
    *,
    values: Mapping[str, int] | None = None,
    kv_len: int | None = None,
) -> LiveSet:
    """The live keys in closed form.

    Without `kv_len`, the queries to come are not bounded, and neither are the calls that they come
    in: a query at `q` may be a row of any call with `q < kv_len` whose rows are its last positions
    (`q_offset = kv_len - q_len <= q`). Where a pattern reads `kv_len` or `q_len`, a key is live if
    it is read in one of all these calls.

    Args:
        pattern: The pattern.
        values: Run-time numbers, coordinates and sizes to put in; the others stay symbols.
        kv_len: The length that all calls to come have; with it, only queries before it come.

    Raises:
        ConfigError: A number without a value is called `t`, as the time is.
        UnsupportedError: A term is outside what can be computed with exactly, or a computation
            outgrows its budget.
    """
    return ask([pattern.body], _live_set, pattern.body, dict(values or {}), kv_len)


def _live_set(body: Predicate, values: Mapping[str, int], kv_len: int | None) -> LiveSet:
    replace: dict[Expr, IntExpr] = {}
    for name, value in values.items():
        replace[Var(name)] = replace[Param(name)] = Const(value)
    if kv_len is not None:
        replace[calls.KV_LEN] = Const(kv_len)
    body = substitute(body, replace)
    if TIME.name in parameters(body):
        raise ConfigError(
            f"`{TIME.name}` is what the time is called, and a number of the pattern without a "
            "value: give it one"
        )
    reads = variables(body)
    readers = all_of(
        compare("<=", TIME, Q),
        compare("<", Q, calls.KV_LEN),
        calls.at_least(calls.Q_LEN, 1),
        compare("<=", calls.Q_LEN, calls.KV_LEN),
        compare("<=", subtract(calls.KV_LEN, calls.Q_LEN), Q),
    )
    given = all_of(
        compare("<=", Const(0), K),
        compare("<=", K, TIME),
        substitute(calls.coordinates_exist(reads), replace),
    )
    if kv_len is not None:
        readers = substitute(readers, replace)
        given = all_of(given, compare("<", TIME, Const(kv_len)))
    forget = [name for name in ("kv_len", "q_len") if name in variables(readers)]
    return LiveSet(Image(body, readers, given, forget).closed_form())


@dataclass(frozen=True, slots=True)
class Bound:
    """A number of keys that a live set never exceeds.

    Attributes:
        keys: At most so many keys are live,
        since: at this time and any later one.
    """

    keys: int
    since: int


def growth(live: LiveSet) -> tuple[Literal["bounded", "unbounded"], Bound | None]:
    """Whether the live keys of one head stay boundedly many for ever, and if so how many: at late
    times. There is no number where the ends of the set are too long to be counted.

    They are boundedly many if and only if they stay near their ends, `min(k, t - k) <= c` for some
    `c`: if not, there are keys on a line `k = a n + b` that are live until some `t = a' n + b'`
    with `a' > a`, and since a key that is no longer live stays so, ever more of them at once. From
    `2 c + 1` on the ends are apart, and what is ever live in each is counted.

    Args:
        live: The live set; `form` reads `k` and `t` alone.

    Raises:
        UnsupportedError: The computation outgrows its budget.
    """
    form = substitute(live.form, {TIME: Q})
    return ask([form], _growth, form)


def _growth(form: Predicate) -> tuple[Literal["bounded", "unbounded"], Bound | None]:
    """As `growth`, of a form in `q` for the time and `k`."""
    far = farthest_from_both_ends(form)
    if far is None:
        return "unbounded", None
    if far > MOST_COUNTED:
        return "bounded", None
    since = max(2 * far + 1, 0)
    near = all_of(compare("<=", Const(0), K), compare("<=", K, Const(far)))
    late = compare("<=", Const(since), Q)
    at_start = Image(all_of(form, compare("<", Const(far), subtract(Q, K))), late, near)
    at_end = Image(substitute(form, {K: subtract(Q, K)}), late, near)  # k: how far behind t
    counted = 0
    for end in (at_start, at_end):
        scope = {"k": np.arange(far + 1, dtype=np.int64)}
        held = np.asarray(evaluate(end.closed_form(), scope), dtype=bool)
        counted += int(np.broadcast_to(held, (far + 1,)).sum())
    return "bounded", Bound(counted, since)
