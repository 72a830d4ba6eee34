"""Lowering: a pattern and a tile shape to a `BlockProgram`, lengths and every run-time number
symbolic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from patterncc.codegen import bounds
from patterncc.codegen.approximate import (
    Enclosure,
    enclose,
    intricacy,
    intricate_terms,
    reads_segments_alone,
    reads_table_by_position,
    terms,
)
from patterncc.codegen.documents import Tile, without_documents
from patterncc.codegen.ir import (
    DENSE,
    K_LAST,
    K_TILE,
    Q_CLASS,
    Q_FIRST,
    Q_LAST,
    Q_OFFSET,
    BlockProgram,
    Sweep,
    Tiling,
)
from patterncc.codegen.line_sweeps import line_program, with_transposed_lines
from patterncc.codegen.lines import Lines, lines_of
from patterncc.codegen.listing import split_listed
from patterncc.codegen.passes import run_passes
from patterncc.codegen.patches import transposed_patches
from patterncc.codegen.pieces import Piece, TooIntricateError
from patterncc.codegen.presburger import Relation, without_covers
from patterncc.codegen.ranges import LEAST, without_foregone
from patterncc.codegen.raster import raster_of
from patterncc.codegen.tiling import change_variables, residue_tiling
from patterncc.dsl.build import add, all_of, compare, multiply, substitute
from patterncc.dsl.mask import (
    TRUE,
    Const,
    Cover,
    Expr,
    FloorDiv,
    IntExpr,
    K,
    Mod,
    Predicate,
    Q,
    Var,
    parameters,
    variables,
    walk,
)
from patterncc.dsl.pattern import Pattern
from patterncc.dsl.printer import expression_text

MOST_INTRICATE = 12  # of `approximate.intricacy`, with which an exact lowering is tried

DIVIDING_SIZES = ("heads", "kv_heads", "layers")


def lower(
    pattern: Pattern,
    block_q: int,
    block_k: int,
    *,
    sizes: Mapping[str, int] | None = None,
    within: bool = False,
    tiling: Tiling = DENSE,
    transposed: bool = True,
    check: bool = False,
) -> BlockProgram:
    """Lowers a pattern for one tile shape and runs all passes.

    See `initial_program` for the arguments and errors; `check` verifies the program at each step.
    """
    program = initial_program(
        pattern,
        block_q,
        block_k,
        sizes=sizes,
        within=within,
        tiling=tiling,
        transposed=transposed,
    )
    return run_passes(program, check=check)


def with_transposed(program: BlockProgram, *, check: bool = False) -> BlockProgram:
    """The program with its transposed direction, through all passes, if it lacks that.

    Errors as in `initial_transposed`.
    """
    if program.transposed is not None:
        return program
    other = run_passes(replace(initial_transposed(program), forward=()), check=check)
    return replace(other, forward=program.forward)


def initial_transposed(program: BlockProgram) -> BlockProgram:
    """The program with its transposed direction as that comes from the relation.

    The forward direction stays as it is; the transposed one ignores the terms that it ignores, and
    more where it is more intricate.

    Raises:
        TooIntricateError: The transposed direction cannot be found within the compiler's budget.
    """
    if program.patches is not None:
        raster = raster_of(program.mask, program.patches.sizes)
        return replace(program, transposed=transposed_patches(program, raster))
    geometry = _Geometry(program.block_q, program.block_k, program.assume != TRUE, program.tiling)
    lines = _lines(program.mask, geometry)
    if lines is not None:
        return with_transposed_lines(program, lines)
    known, _ = split_listed(
        program.mask, program.block_q, program.block_k, gathered=program.gathered > 1
    )
    below, ignored = _loops(known, geometry, _transposed, program.ignored)
    return replace(program, transposed=below, ignored=ignored)


def initial_program(
    pattern: Pattern,
    block_q: int,
    block_k: int,
    *,
    sizes: Mapping[str, int] | None = None,
    within: bool = False,
    tiling: Tiling = DENSE,
    transposed: bool = True,
) -> BlockProgram:
    """The program as it comes from the relation, before any pass.

    Args:
        pattern: What to lower; its run-time numbers, the lengths and the query offset stay
            symbolic.
        block_q: Rows of a query tile.
        block_k: Keys of a key tile.
        sizes: `heads`, `kv_heads`, `layers`; needed only where the pattern divides by one of them.
        within: Take for granted that the rows end within the keys (`q_offset >= 0`, `q_offset +
            q_len <= kv_len`), as they do whenever no `q_offset` is given and there are no more
            queries than keys; needs fewer sweeps. Loops over the lines of a raster take for granted
            besides that calls begin at a multiple of `first_row_step`.
        tiling: The variables to work in. All that the pattern allows must lie within the classes
            of the tiling: pairs outside of them are left out.
        transposed: Whether to lower the transposed direction as well, which costs about as much
            again and which no forward call reads.

    Raises:
        UnsupportedError: For a term that has no exact lowering yet; the message names it.
    """
    whole = specialise(pattern.body, sizes or {})
    return initial_part(
        pattern, whole, block_q, block_k, within=within, tiling=tiling, transposed=transposed
    )


def initial_part(
    pattern: Pattern,
    body: Predicate,
    block_q: int,
    block_k: int,
    *,
    within: bool,
    tiling: Tiling,
    transposed: bool,
    run: int | None = None,
) -> BlockProgram:
    """Some pairs of a pattern as they come from the relation, before any pass.

    Args:
        pattern: What the pairs are of.
        body: The pairs, as `specialise` leaves them; in the positions of the call.
        block_q, block_k, within, tiling, transposed: As in `initial_program`.
        run: Key tiles are gathered from runs of so many keys; None for consecutive keys.

    Raises:
        UnsupportedError: For a term that has no lowering; the message names it.
    """
    body = change_variables(body, tiling)
    gathered = 1 if run is None else block_k // run
    block_k //= gathered
    geometry = _Geometry(block_q, block_k, within, tiling)
    lines = _lines(body, geometry)
    if lines is not None:
        program = line_program(pattern.structure, body, lines, (block_q, block_k))
        return with_transposed_lines(program, lines) if transposed else program
    known, listed = split_listed(body, block_q, block_k, gathered=gathered > 1)
    forward, ignored = _loops(known, geometry, _forward)
    program = BlockProgram(
        structure=pattern.structure,
        block_q=block_q,
        block_k=block_k,
        mask=body,
        forward=forward,
        transposed=None,
        assume=_rows_end_within_keys(tiling) if within else TRUE,
        scalars=tuple(sorted(parameters(body) | parameters(tiling.k_class))),
        tiling=tiling,
        listed=listed,
        ignored=ignored,
        gathered=gathered,
    )
    return initial_transposed(program) if transposed else program


def _lines(body: Predicate, geometry: _Geometry) -> Lines | None:
    """How to loop over the lines of a raster where a mask is too intricate for isl and does not
    look into units that tiles divide; None where that is not so."""
    if geometry.tiling != DENSE or not geometry.within or intricacy(body) <= MOST_INTRICATE:
        return None
    lines = lines_of(body)
    return lines if lines is not None and lines.fits(geometry.block_q, geometry.block_k) else None


def first_row_step(pattern: Pattern, sizes: Mapping[str, int]) -> int:
    """Of what number the position of a call's first row must be a multiple for programs that are
    lowered `within`, in tiles of whatever shape; 1 for nearly all patterns.

    Args:
        pattern: The pattern.
        sizes: Sizes by which it divides.

    Raises:
        UnsupportedError: A cover in it cannot be written out.
    """
    if not any(isinstance(node, (FloorDiv, Mod, Cover)) for node in walk(pattern.body)):
        return 1
    body = specialise(pattern.body, sizes)
    lines = lines_of(body) if intricacy(body) > MOST_INTRICATE else None
    return 1 if lines is None else lines.area


def _loops(
    body: Predicate,
    geometry: _Geometry,
    tiles: Callable[
        [Predicate, Sequence[Predicate], _Geometry, bool], tuple[list[Piece], list[Piece]]
    ],
    before: tuple[Predicate, ...] = (),
) -> tuple[tuple[Sweep, ...], tuple[Predicate, ...]]:
    """The sweeps of one direction, and the terms that they take no notice of.

    Terms that read tables by position are such; where the others are too intricate together, those
    that divide positions most are ignored as well, until the rest can be computed with. Where there
    are too many terms for that, all that the loops know is the convex hull of the mask.

    Args:
        body: The mask.
        geometry: The tiles.
        tiles: `_forward` or `_transposed`.
        before: The terms that the other direction takes no notice of.
    """
    tables = tuple(term for term in terms(body) if reads_table_by_position(term))
    ignored = before or tuple(term for term in tables if not reads_segments_alone(term))
    hull = ignored == (body,)
    groups = (
        [term for term in group if term not in (*tables, *ignored)]
        for group in intricate_terms(body)
    )
    spare = [group for group in groups if group and not hull]
    # Beyond this nothing was ever found exactly.
    while spare and intricacy(body, ignored) > MOST_INTRICATE:
        ignored += tuple(spare.pop(0))
    if len(spare) > 1:  # each attempt may take a third of a second: at most three before the last
        spare = [spare[0], [term for group in spare[1:] for term in group]]
    while True:
        try:
            return _sweeps(tiles(body, ignored, geometry, hull)), (body,) if hull else ignored
        except TooIntricateError:
            if hull:
                raise
            if spare:
                ignored += tuple(spare.pop(0))
            else:  # too many terms, however simple
                hull = True


def _rows_end_within_keys(tiling: Tiling) -> Predicate:
    """`q_offset >= 0` and `q_offset + q_len <= kv_len`, as it is seen within a class."""
    end = add(Q_OFFSET, Var("q_len"))
    return all_of(compare(">=", Q_OFFSET, Const(0)), _before_last_key(tiling, end))


def _before_last_key(tiling: Tiling, end: IntExpr) -> Predicate:
    """What is known within a class when its rows before `end` stand before the call's last key."""
    keys: IntExpr = Var("kv_len")
    if tiling.k_step > 1 and tiling != residue_tiling(tiling.q_step):
        # With n keys in a class the call has at most k_step * n + k_class of them.
        keys = multiply(Const(tiling.k_step), add(keys, Const(1)))
        end = add(multiply(Const(tiling.q_step), add(end, Const(-1))), Const(1))
    return compare("<=", end, keys)


def specialise(body: Predicate, sizes: Mapping[str, int]) -> Predicate:
    """The mask with the sizes that divide something replaced by their values, covers written out
    and what is decided beforehand left out.

    Raises:
        UnsupportedError: A cover is of a pattern that reads a table at a position.
        TooIntricateError: A cover cannot be found within the compiler's budget.
    """
    dividing: set[str] = set()
    for node in walk(body):
        if isinstance(node, (FloorDiv, Mod)):
            dividing |= variables(node.divisor) & set(DIVIDING_SIZES)
    replace: dict[Expr, IntExpr] = {
        Var(name): Const(sizes[name]) for name in dividing if name in sizes
    }
    return without_foregone(without_covers(substitute(body, replace)))


def _sweeps(pieces: tuple[list[Piece], list[Piece]]) -> tuple[Sweep, ...]:
    full, partial = pieces
    loops = [sweep for piece in partial for sweep in bounds.sweeps(piece, "partial")]
    loops += [sweep for piece in full for sweep in bounds.sweeps(piece, "full")]
    return tuple(loops)


@dataclass(frozen=True, slots=True)
class _Geometry:
    """The tiles to lower for."""

    block_q: int
    block_k: int
    within: bool
    tiling: Tiling

    @property
    def query(self) -> IntExpr:
        """The position of a row, in the call."""
        return self.query_at(Q)

    @property
    def key(self) -> IntExpr:
        """The position of a key, in the call."""
        return self.key_at(K)

    def query_at(self, row: IntExpr) -> IntExpr:
        rows = multiply(Const(self.tiling.q_step), row)
        return add(rows, Q_CLASS) if self.tiling.q_step > 1 else rows

    def key_at(self, key: IntExpr) -> IntExpr:
        return add(multiply(Const(self.tiling.k_step), key), self.tiling.k_class)


def _relation(
    body: Predicate, ignored: Sequence[Predicate], tile: Tile, extra: Sequence[str], hull: bool
) -> Relation:
    """The pairs that the loops are made for."""
    enclosure, facts = without_documents(body, tile)

    def unknown(term: Predicate) -> bool:
        return term in ignored or reads_table_by_position(term)

    could, must = enclose(enclosure.could, unknown).could, enclose(enclosure.must, unknown).must
    return Relation(Enclosure(could, must), extra, facts, hull=hull)


def _forward(
    body: Predicate, ignored: Sequence[Predicate], geometry: _Geometry, hull: bool
) -> tuple[list[Piece], list[Piece]]:
    block_q, block_k = geometry.block_q, geometry.block_k
    tile = Tile(geometry.query, geometry.key, geometry.query_at(Q_FIRST), geometry.query_at(Q_LAST))
    relation = _relation(body, ignored, tile, ["q_first", "q_last", "kv_len"], hull)
    context = [
        *_facts(relation.names),
        *_classes(relation.names, geometry.tiling),
        f"q_first <= q_last < q_first + {block_q}",
    ]
    if geometry.within:
        inside = _before_last_key(geometry.tiling, add(Q_LAST, Const(1)))
        context += ["q_first >= 0", expression_text(inside)]
    return relation.tiles(
        region=["q_first <= q <= q_last", f"0 <= {block_k} tile <= k < {block_k} tile + {block_k}"],
        exists=["k < kv_len"],
        whole=["k < kv_len"],
        context=context,
    )


def _transposed(
    body: Predicate, ignored: Sequence[Predicate], geometry: _Geometry, hull: bool
) -> tuple[list[Piece], list[Piece]]:
    block_q, block_k = geometry.block_q, geometry.block_k
    first = geometry.key_at(multiply(Const(block_k), K_TILE))
    tile = Tile(geometry.key, geometry.query, first, geometry.key_at(K_LAST))
    extra = ["k_tile", "k_last", "q_offset", "q_len", "kv_len"]
    relation = _relation(body, ignored, tile, extra, hull)
    last = f"{block_k} k_tile + {block_k - 1}"
    context = [
        *_facts(relation.names),
        *_classes(relation.names, geometry.tiling),
        f"0 <= {block_k} k_tile <= k_last <= {last}",
        "k_last < kv_len",
    ]
    if geometry.within:
        context.append(expression_text(_rows_end_within_keys(geometry.tiling)))
    rows = [f"tile >= 0 and q_offset + {block_q} tile <= q < q_offset + {block_q} tile + {block_q}"]
    return relation.tiles(
        region=[*rows, "q < q_offset + q_len", f"{block_k} k_tile <= k <= {last}"],
        exists=["k <= k_last"],
        whole=["k <= k_last"],
        context=context,
    )


def _facts(names: list[str]) -> list[str]:
    """What holds at every call."""
    return [f"{name} >= {LEAST[name]}" for name in names if name in LEAST]


def _classes(names: list[str], tiling: Tiling) -> list[str]:
    """What holds of the class of rows."""
    return [f"0 <= {Q_CLASS.name} < {tiling.q_step}"] if Q_CLASS.name in names else []
