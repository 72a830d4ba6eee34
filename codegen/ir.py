"""The block IR: which key tiles a query tile visits, and the same seen from a key tile.

Conventions, for the whole code base: ranges are half open; a *query tile* is `block_q` consecutive
rows of the call, tile 0 starting at row 0 (position `q_offset`); a *key tile* is `block_k`
consecutive keys, tile 0 starting at key 0. A tile is *full* when every existing row of it attends
to every one of its `block_k` (`block_q`) positions, so a tile that hangs over the last key is never
full and rows past the last query do not matter. It is *partial* when some pair of it is allowed and
it is not full. Bounds are scalar expressions: no tensor, no table of tiles, no length built in.

Of a program with `Patches` tiles are patches of a raster instead, and their numbers count those.

A pattern is lowered to one program or to several *passes*: programs over disjoint sets of pairs,
whose results are merged by their log-sum-exp. A pass may work in changed variables, see `Tiling`.
It may be *gathered*: what it visits are then no key tiles but *runs* of a few keys, often of one,
and kernels gather as many as fill a key tile, wherever they lie.

This file owns the nodes and what they mean; it knows neither isl nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, TypeAlias

from patterncc.dsl.build import add, floordiv
from patterncc.dsl.errors import InternalError
from patterncc.dsl.mask import TRUE, Const, Expr, IntExpr, Predicate, Var

Kind: TypeAlias = Literal["full", "partial"]
Direction: TypeAlias = Literal["forward", "transposed"]

# Symbols that bounds may read besides the coordinates and sizes of the language and the pattern's
# run-time numbers.
Q_FIRST = Var("q_first")  # forward: position of the query tile's first row
Q_LAST = Var("q_last")  # forward: position of its last existing row (>= q_first)
K_TILE = Var("k_tile")  # transposed: number of the key tile, whose keys start at block_k * k_tile
K_LAST = Var("k_last")  # transposed: position of its last existing key
K_FIRST = Var("k_first")  # in `Entries`: position of the first key of a tile
Q_OFFSET = Var("q_offset")  # position of row 0
RESIDUE = Var("residue")  # the class of a sweep with classes > 1
Q_CLASS = Var("q_class")  # with a `Tiling`: which rows the program's coordinates count
CALL_Q_LEN = Var(
    "call_q_len"
)  # with a `Tiling`: the lengths of the call, where the mask reads them
CALL_KV_LEN = Var("call_kv_len")

_ZERO = Const(0)


@dataclass(frozen=True, slots=True)
class Repeat:
    """A loop around one over tiles: `for m in [lo, hi): add step * m to the tile's number`."""

    lo: IntExpr
    hi: IntExpr
    step: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """A loop over tiles: `for n in [lo, hi): visit tile stride * n + phase`, run only where `guard`
    holds.

    `stride == 1` is an interval, more a progression. With `classes > 1` it stands for that many
    loops, one for each value of `RESIDUE` in `[0, classes)`, which `guard`, `lo`, `hi` and `phase`
    may read. `hi <= lo` is an empty loop. Each of `repeats`, the innermost first, is a loop around
    it; what `lo`, `hi` and `phase` are does not depend on those.
    """

    kind: Kind
    lo: IntExpr
    hi: IntExpr
    guard: Predicate = TRUE
    stride: int = 1
    phase: IntExpr = _ZERO
    classes: int = 1
    repeats: tuple[Repeat, ...] = ()

    @property
    def bounds(self) -> tuple[Expr, ...]:
        """All that decides which tiles are visited."""
        ends = (end for repeat in self.repeats for end in (repeat.lo, repeat.hi))
        return self.lo, self.hi, self.guard, self.phase, *ends


@dataclass(frozen=True, slots=True)
class Tiling:
    """A change of variables that turns rows and keys which lie apart into dense work.

    The rows of a call fall into `q_step` classes: class number `c` holds its rows `c`, `c + q_step`
    and so on, whose positions leave the remainder `Q_CLASS = (q_offset + c) % q_step`. A program
    with a tiling is about one class of rows and the keys `k_step * k + k_class`; all its
    coordinates, lengths, offsets and tiles count within those:

    - position of a query: `q_step * q + Q_CLASS`; of a key: `k_step * k + k_class`
    - `q_offset`: `(q_offset + c) // q_step` of the call's
    - `q_len`: `(q_len - c + q_step - 1) // q_step` of the call's, at least 0
    - `kv_len`: `(kv_len - k_class + k_step - 1) // k_step` of the call's, at least 0

    Where the mask or a bound needs a length of the call it reads `CALL_Q_LEN`, `CALL_KV_LEN`.

    Attributes:
        q_step: How far apart the rows of a class are.
        k_step: How far apart its keys are.
        k_class: The first of its keys, in `[0, k_step)`; reads `Q_CLASS` and scalars of the call.
    """

    q_step: int = 1
    k_step: int = 1
    k_class: IntExpr = _ZERO


DENSE = Tiling()

MOST_AXES = 4  # of a raster


@dataclass(frozen=True, slots=True)
class Patches:
    """Tiles that are patches of a raster: rows (or keys) which are near each other along all of its
    axes, and not only along the sequence.

    The position of the place `(a_0, a_1, ...)` is `(a_0 * sizes[0] + a_1) * sizes[1] + ...`; the
    outermost axis has no size, it is as long as the sequence. A patch is a box of places; element
    `i` of a tile is place number `i` of its patch, counted in the same way. A tile may have more
    elements than its patch has places. What lies past the end of a patch or of an inner axis, is
    before the call's first row or after its last, or after the last key, does not exist.
    Coordinates, lengths and the offset are the call's.

    Tiles that a program *holds* (of rows in the forward direction, of keys in the transposed one)
    lie on a grid and are numbered as places are, the outermost axis first: those of keys from the
    one with key 0, those of queries from the first of the band, of all patches with the same place
    on the grid along the outermost axis, that the call's first row is in. Grids begin at the edge
    of the raster, or some places before it, as a mask does whose windows are cut off by the edge:
    the first patch along such an axis is shorter. Tiles that *pass* begin wherever
    what the held one sees begins, and the number of such a tile in `Sweep` is the position of its
    first place.

    Bounds read the *box* of the held tile instead of `Q_FIRST` to `K_LAST`: `box(side, "first")`
    and `box(side, "last")` along each axis, of its places that lie within the axis and, along the
    outermost one, hold a row (or key) of the call.

    Attributes:
        sizes: Places along each axis but the outermost.
        query: Extents of a held tile of queries along each axis, at most `block_q` places.
        passing_keys: Extents of the tiles of keys that pass it, at most `block_k` places.
        key: Extents of a held tile of keys, at most `block_k` places.
        passing_queries: Extents of the tiles of queries that pass it, at most `block_q` places.
        query_before: How many places the grid of held tiles of queries begins before the edge along
            each axis, at least 0 and less than the extent, in numbers of the call; empty where it
            begins at the edge along all.
        key_before: The same of held tiles of keys.
    """

    sizes: tuple[int, ...]
    query: tuple[int, ...]
    passing_keys: tuple[int, ...]
    key: tuple[int, ...]
    passing_queries: tuple[int, ...]
    query_before: tuple[IntExpr, ...] = ()
    key_before: tuple[IntExpr, ...] = ()

    @property
    def area(self) -> int:
        """Positions for each place of the outermost axis."""
        return prod(self.sizes)

    @property
    def steps(self) -> tuple[int, ...]:
        """How many positions are between neighbouring places along each axis."""
        return tuple(prod(self.sizes[axis:]) for axis in range(len(self.sizes) + 1))

    def held(self, side: Literal["q", "k"]) -> tuple[int, ...]:
        """Extents of held tiles of queries or of keys."""
        return self.query if side == "q" else self.key

    def passing(self, side: Literal["q", "k"]) -> tuple[int, ...]:
        """Extents of passing tiles of queries or of keys."""
        return self.passing_queries if side == "q" else self.passing_keys

    def before(self, side: Literal["q", "k"]) -> tuple[IntExpr, ...]:
        """How many places a grid begins before the edge, of every axis."""
        before = self.query_before if side == "q" else self.key_before
        return before or (_ZERO,) * len(self.steps)

    def counts(self, side: Literal["q", "k"]) -> tuple[IntExpr, ...]:
        """How many held patches there are along each axis but the outermost."""
        inner = zip(self.sizes, self.held(side)[1:], self.before(side)[1:], strict=True)
        return tuple(
            floordiv(add(Const(size + extent - 1), before), Const(extent))
            for size, extent, before in inner
        )


def box(side: Literal["q", "k"], end: Literal["first", "last"], axis: int) -> Var:
    """The coordinate of a patch of queries or keys along an axis where it begins or ends."""
    return Var(f"{side}_{end}_{axis}")


BOX_NAMES = frozenset(
    f"{side}_{end}_{axis}"
    for side in ("q", "k")
    for end in ("first", "last")
    for axis in range(MOST_AXES)
)


@dataclass(frozen=True, slots=True)
class Range:
    """The integers from `lo` to `hi`, both included; never more than `most`."""

    lo: IntExpr
    hi: IntExpr
    most: int


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of a table of truth values that the pairs of a tile read.

    Attributes:
        table: Its name.
        ranges: For each axis the indexes that occur; they read `Q_FIRST`, `Q_LAST`, `K_FIRST` and
            `K_LAST` (its first and last existing row and key), and scalars.
    """

    table: str
    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison with what tables of numbers say of a key, seen by the rows of a query tile; of
    runs of one key.

    Attributes:
        some: Does it hold for some row? Reads `Q_FIRST`, `Q_LAST`, `K_FIRST` and scalars.
        every: Does it hold for every row?
    """

    some: Predicate
    every: Predicate


Literals: TypeAlias = tuple["Entries | Comparison", ...]
Clauses: TypeAlias = tuple[Literals, ...]


@dataclass(frozen=True, slots=True)
class BlockProgram:
    """A pattern, or one pass of it, lowered for one tile shape: disjoint sweeps that together visit
    exactly the tiles that matter.

    Attributes:
        structure: Canonical text of the pattern it came from.
        block_q, block_k: Tile shape; of a gathered program, rows of a query tile and keys of a run.
        mask: The predicate to apply inside partial tiles, besides that the key exists (`k <
            kv_len`).
        forward: Sweeps over key tiles for one query tile; read `Q_FIRST`, `Q_LAST`.
        transposed: Sweeps over query tiles for one key tile; read `K_TILE`, `K_LAST`, `Q_OFFSET`
            and `q_len`. None where only the forward direction was asked for.
        assume: What the bounds take for granted of the call (a predicate of its scalars); the
            launcher checks it.
        scalars: Names of the run-time numbers of the pattern that bounds or mask read, in name
            order.
        tiling: The variables that all of the above is in.
        listed: What the mask asks of tables besides all that the sweeps know, as clauses of which
            each must hold: one of its `Entries`, or a `Comparison`, is true. A tile of a sweep is
            visited only if each clause may hold in it, and one that the sweep calls full is so only
            if each has one that is true throughout.
        ignored: Terms of the mask that the sweeps of one direction or of both take no notice of:
            those that read a table at a position, and those that are too intricate. Every tile with
            an allowed pair is still visited, and full ones are full, but a visited tile may turn
            out empty and a partial one full.
        decided: Terms of the mask's conjunction that are true of every pair of a visited tile:
            kernels need not ask them in partial tiles.
        gathered: How many runs make a key tile of a kernel: `1` where key tiles are consecutive
            keys. A gathered program is dense (`DENSE`). All that is said above of key tiles is then
            true of runs: a run is visited, partial or full by itself, and a key tile of full runs
            needs no mask.
        patches: What tiles are, if they are patches of a raster; a program with patches is dense
            and neither listed nor gathered. Every tile with an allowed pair is visited, and full
            ones are full, but where a term is in `ignored`, or the call begins or ends within a
            place of the outermost axis, a visited tile may turn out empty and a partial one full.
    """

    structure: str
    block_q: int
    block_k: int
    mask: Predicate
    forward: tuple[Sweep, ...]
    transposed: tuple[Sweep, ...] | None
    assume: Predicate = TRUE
    scalars: tuple[str, ...] = ()
    tiling: Tiling = DENSE
    listed: Clauses = ()
    ignored: tuple[Predicate, ...] = ()
    decided: tuple[Predicate, ...] = ()
    gathered: int = 1
    patches: Patches | None = None

    @property
    def tile_keys(self) -> int:
        """Keys of a key tile of kernels."""
        return self.block_k * self.gathered

    def sweeps(self, direction: Direction) -> tuple[Sweep, ...]:
        """The sweeps of one direction.

        Raises:
            InternalError: It was not asked for when the pattern was lowered.
        """
        if direction == "forward":
            return self.forward
        if self.transposed is None:
            raise InternalError("this program was lowered for the forward direction alone")
        return self.transposed

    def map_sweeps(self, function: Callable[[tuple[Sweep, ...]], Iterable[Sweep]]) -> BlockProgram:
        """The program with the sweeps of each direction that it has replaced."""
        return replace(
            self,
            forward=tuple(function(self.forward)),
            transposed=None if self.transposed is None else tuple(function(self.transposed)),
        )


Passes: TypeAlias = tuple[BlockProgram, ...]
"""The programs that together compute a pattern, over disjoint pairs."""
