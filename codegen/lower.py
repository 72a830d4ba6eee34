"""Lowering: a pattern and a tile shape to a `BlockProgram`, lengths and every run-time number
symbolic.
"""

from __future__ import annotations

from collections.abc import Mapping

from patterncc.codegen import bounds
from patterncc.codegen.ir import Q_OFFSET, BlockProgram, Sweep
from patterncc.codegen.passes import run_passes
from patterncc.codegen.pieces import Piece
from patterncc.codegen.presburger import Relation
from patterncc.dsl.build import add, all_of, compare, substitute
from patterncc.dsl.mask import (
    TRUE,
    Const,
    Expr,
    FloorDiv,
    IntExpr,
    Mod,
    Predicate,
    Var,
    parameters,
    variables,
    walk,
)
from patterncc.dsl.pattern import Pattern

DIVIDING_SIZES = ("heads", "kv_heads", "layers")


def lower(
    pattern: Pattern,
    block_q: int,
    block_k: int,
    *,
    sizes: Mapping[str, int] | None = None,
    within: bool = False,
    check: bool = False,
) -> BlockProgram:
    """Lowers a pattern for one tile shape and runs all passes.

    See `initial_program` for the arguments and errors; `check` verifies the program at each step.
    """
    program = initial_program(pattern, block_q, block_k, sizes=sizes, within=within)
    return run_passes(program, check=check)


def initial_program(
    pattern: Pattern,
    block_q: int,
    block_k: int,
    *,
    sizes: Mapping[str, int] | None = None,
    within: bool = False,
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
            queries than keys; needs fewer sweeps.

    Raises:
        UnsupportedError: For a term that has no exact lowering yet; the message names it.
    """
    body = specialise(pattern.body, sizes or {})
    forward = _forward(body, block_q, block_k, within)
    transposed = _transposed(body, block_q, block_k, within)
    assume = (
        all_of(
            compare(">=", Q_OFFSET, Const(0)),
            compare("<=", add(Q_OFFSET, Var("q_len")), Var("kv_len")),
        )
        if within
        else TRUE
    )
    return BlockProgram(
        structure=pattern.structure,
        block_q=block_q,
        block_k=block_k,
        mask=body,
        forward=_sweeps(forward),
        transposed=_sweeps(transposed),
        assume=assume,
        scalars=tuple(sorted(parameters(body))),
    )


def specialise(body: Predicate, sizes: Mapping[str, int]) -> Predicate:
    """The mask with the sizes that divide something replaced by their values."""
    dividing: set[str] = set()
    for node in walk(body):
        if isinstance(node, (FloorDiv, Mod)):
            dividing |= variables(node.divisor) & set(DIVIDING_SIZES)
    replace: dict[Expr, IntExpr] = {
        Var(name): Const(sizes[name]) for name in dividing if name in sizes
    }
    return substitute(body, replace)


def _sweeps(pieces: tuple[list[Piece], list[Piece]]) -> tuple[Sweep, ...]:
    full, partial = pieces
    loops = [sweep for piece in partial for sweep in bounds.sweeps(piece, "partial")]
    loops += [sweep for piece in full for sweep in bounds.sweeps(piece, "full")]
    return tuple(loops)


def _forward(
    body: Predicate, block_q: int, block_k: int, within: bool
) -> tuple[list[Piece], list[Piece]]:
    relation = Relation(body, ["q_first", "q_last", "kv_len"])
    context = [*_facts(relation.names), f"q_first <= q_last < q_first + {block_q}"]
    if within:
        context += ["q_first >= 0", "q_last < kv_len"]
    return relation.tiles(
        region=["q_first <= q <= q_last", f"0 <= {block_k} tile <= k < {block_k} tile + {block_k}"],
        exists=["k < kv_len"],
        whole=["k < kv_len"],
        context=context,
    )


def _transposed(
    body: Predicate, block_q: int, block_k: int, within: bool
) -> tuple[list[Piece], list[Piece]]:
    relation = Relation(body, ["k_tile", "k_last", "q_offset", "q_len", "kv_len"])
    last = f"{block_k} k_tile + {block_k - 1}"
    context = [
        *_facts(relation.names),
        f"0 <= {block_k} k_tile <= k_last <= {last}",
        "k_last < kv_len",
    ]
    if within:
        context += ["q_offset >= 0", "q_offset + q_len <= kv_len"]
    rows = [f"tile >= 0 and q_offset + {block_q} tile <= q < q_offset + {block_q} tile + {block_q}"]
    return relation.tiles(
        region=[*rows, "q < q_offset + q_len", f"{block_k} k_tile <= k <= {last}"],
        exists=["k <= k_last"],
        whole=["k <= k_last"],
        context=context,
    )


def _facts(names: list[str]) -> list[str]:
    """What holds at every call."""
    least = {"q_len": 1, "kv_len": 1, "heads": 1, "kv_heads": 1, "layers": 1}
    least |= {"head": 0, "kv_head": 0, "layer": 0, "batch": 0}
    return [f"{name} >= {least[name]}" for name in names if name in least]
