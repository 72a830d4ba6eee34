"""One layer at a time: what some positions read, by integer sets or by looking at positions.

Both ways are exact. In both, a position also reads itself (the residual stream).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from patterncc.codegen import schedule
from patterncc.codegen.facts.layers import Stack
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.lower import lower
from patterncc.codegen.pieces import TooIntricateError
from patterncc.codegen.presburger.chains import Chain
from patterncc.codegen.schedule import evaluate
from patterncc.dsl.mask import Const, Cover, Predicate, walk
from patterncc.dsl.pattern import Pattern

Flags: TypeAlias = npt.NDArray[np.bool_]

MOST_EXTENTS = 1 << 25  # tokens times loops of one mask
MOST_DENSE = 1 << 13  # tokens up to which every pair of a mask is looked at
MANY_LOOPS = 32  # of a row; looking at every pair is quicker, where that is possible
MOST_KEPT = 1 << 22  # tokens of all masks of which the loops are kept at a time


class Hops(Protocol):
    """Sets of positions, and what they read in a layer. Sets are of a type that only it knows."""

    def start(self, position: int) -> Any:
        """The set of one position."""

    def image(self, positions: Any, kind: int) -> Any:
        """What some positions read in a layer with mask number `kind`, themselves included."""

    def flags(self, positions: Any) -> Flags:
        """A set as flags, bool `[q_len]`."""

    def readers(self, position: int, kind: int) -> Flags:
        """Which positions read one, bool `[q_len]`; itself included."""


class Relations:
    """By composing integer sets, whatever the number of positions.

    Raises:
        TooIntricateError: In every method, when the budget of the whole is used up.
    """

    def __init__(self, stack: Stack, q_len: int) -> None:
        self._chain = Chain(stack.masks, Const(q_len))
        self._q_len = q_len

    def start(self, position: int) -> Any:
        return self._chain.position(position)

    def image(self, positions: Any, kind: int) -> Any:
        return self._chain.image(positions, kind)

    def flags(self, positions: Any) -> Flags:
        return self._evaluated(self._chain.predicate(positions), "k")

    def readers(self, position: int, kind: int) -> Flags:
        return self._evaluated(self._chain.readers(position, kind), "q")

    def _evaluated(self, form: Predicate, name: str) -> Flags:
        scope = {name: np.arange(self._q_len, dtype=np.int64)}
        return np.broadcast_to(np.asarray(evaluate(form, scope), dtype=bool), (self._q_len,))


class Positions:
    """By looking at every position.

    The pairs of a row are the loops of the pattern lowered for tiles of one query and one key;
    where it is too intricate for that, the mask is evaluated at every pair.

    Raises:
        TooIntricateError: In every method, where there are too many loops or pairs.
    """

    def __init__(
        self, pattern: Pattern, stack: Stack, q_len: int, sizes: Mapping[str, int], batch: int
    ) -> None:
        self._stack = stack
        self._q_len = q_len
        numbers = pattern.defaults
        lengths = {"q_len": q_len, "kv_len": q_len, "q_offset": 0}
        self._env = {**numbers, **sizes, **lengths, "batch": batch}
        program: BlockProgram | None
        try:
            program = lower(pattern, 1, 1, sizes=sizes, within=True, transposed=False)
        except TooIntricateError:
            program = None
        if program is not None and (program.ignored or self._is_dense(program)):
            program = None
        self._program = program
        kept = max(4, MOST_KEPT // q_len)
        self._rows = lru_cache(maxsize=kept)(self._make_rows)

    def start(self, position: int) -> Flags:
        flags = np.zeros(self._q_len, dtype=bool)
        flags[position] = True
        return flags

    def image(self, positions: Flags, kind: int) -> Flags:
        return positions | self._rows(kind).image(positions)

    def flags(self, positions: Flags) -> Flags:
        return positions

    def readers(self, position: int, kind: int) -> Flags:
        return self._rows(kind).readers(position) | self.start(position)

    def _is_dense(self, program: BlockProgram) -> bool:
        loops = sum(sweep.classes for sweep in program.forward)
        return loops > MANY_LOOPS and self._q_len <= MOST_DENSE

    def _make_rows(self, kind: int) -> _Loops | _Pairs:
        if self._program is None:
            return _Pairs(self._stack.masks[kind], self._q_len)
        loops = _Loops(self._q_len)
        for place in self._stack.heads[kind]:
            for extent in schedule.extents(self._program, {**self._env, **place}):
                loops.add(*extent)
        return loops


class _Loops:
    """A mask as loops over the keys of each row."""

    def __init__(self, q_len: int) -> None:
        self._q_len = q_len
        self._loops: list[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []

    def add(
        self,
        sweep: Any,
        first: npt.NDArray[np.int64],
        count: npt.NDArray[np.int64],
        phase: npt.NDArray[np.int64],
    ) -> None:
        if (len(self._loops) + 1) * self._q_len > MOST_EXTENTS:
            raise TooIntricateError(
                f"the pattern has more than {len(self._loops)} loops a row, too many to follow "
                f"through {self._q_len} tokens"
            )
        if count.any():
            self._loops.append((sweep.stride, sweep.stride * first + phase, count))

    def image(self, positions: Flags) -> Flags:
        result = np.zeros(self._q_len, dtype=bool)
        for stride, first, count in self._loops:
            rows = positions & (count > 0)
            # Keys by residue of the stride, so that each loop is an interval of them.
            columns = -(-self._q_len // stride)
            begin = first[rows] % stride * columns + first[rows] // stride
            size = stride * columns + 1
            edges = np.bincount(begin, minlength=size)
            edges -= np.bincount(begin + count[rows], minlength=size)
            inside = np.cumsum(edges)[:-1] > 0
            result |= inside.reshape(stride, columns).T.reshape(-1)[: self._q_len]
        return result

    def readers(self, position: int) -> Flags:
        result = np.zeros(self._q_len, dtype=bool)
        for stride, first, count in self._loops:
            steps, rest = np.divmod(position - first, stride)
            result |= (rest == 0) & (steps >= 0) & (steps < count)
        return result


class _Pairs:
    """A mask as one bit for each pair."""

    def __init__(self, mask: Predicate, q_len: int) -> None:
        if q_len > MOST_DENSE or any(isinstance(node, Cover) for node in walk(mask)):
            raise TooIntricateError(
                "the pattern is too intricate to compose exactly, and "
                + (
                    f"{q_len} tokens are too many to look at every pair: at most {MOST_DENSE}"
                    if q_len > MOST_DENSE
                    else "it has a cover"
                )
            )
        k = np.arange(q_len, dtype=np.int64)[None, :]
        parts = []
        step = max(1, (1 << 22) // q_len)
        for low in range(0, q_len, step):
            q = np.arange(low, min(low + step, q_len), dtype=np.int64)[:, None]
            allowed = np.asarray(evaluate(mask, {"q": q, "k": k}), dtype=bool)
            parts.append(np.packbits(np.broadcast_to(allowed, (len(q), q_len)), axis=1))
        self._bits = np.concatenate(parts)
        self._q_len = q_len

    def image(self, positions: Flags) -> Flags:
        joined = np.bitwise_or.reduce(self._bits[positions], axis=0)
        return np.unpackbits(joined, count=self._q_len).astype(bool)

    def readers(self, position: int) -> Flags:
        byte, bit = divmod(position, 8)
        return (self._bits[:, byte] >> (7 - bit) & 1).astype(bool)
