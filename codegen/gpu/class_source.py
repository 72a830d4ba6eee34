"""Which rows and keys a program of the grid works on, as Triton text: the classes of a `Tiling`.

The grid's first axis counts query tiles, and with a tiling the classes of rows within each, so that
neighbouring programs read neighbouring rows and the tiles with most keys still come first. From the
class follow the numbers that all else in the kernel counts with, under the names that a dense
kernel has as parameters: `q_len`, `kv_len`, `q_offset`. The call's own are `call_q_len`,
`call_kv_len`, `call_q_offset`.

A kernel that computes tiles of keys has a program for each tile of each class of keys, also of
those that no row sees. Where the classes of rows and of keys are in pairs, the program's keys have
one class of rows; else it tries one class of rows after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.mask_source import scalar_name
from patterncc.codegen.gpu.scalar_source import ExpressionWriter, Text
from patterncc.codegen.ir import CALL_KV_LEN, DENSE, Q_CLASS, Q_OFFSET
from patterncc.dsl.build import add, floordiv, modulo, multiply
from patterncc.dsl.mask import Const, Expr, IntExpr, Mod, Param, Product, Sum, Var, walk

if TYPE_CHECKING:
    from patterncc.codegen.gpu.config import Neighbours, Order
    from patterncc.codegen.ir import Tiling

ROW_CLASS = Var("row_class")
"""Which of the call's rows are the program's: `row_class, row_class + q_step, ...`."""

CLASS_NAMES = ("q_class", "k_class", "row_class", "call_rows")
"""What the lines below define besides the lengths and the offset."""


def length_parameters(tiling: Tiling) -> tuple[str, str, str]:
    """What the kernel's parameters for `q_len`, `kv_len` and `q_offset` are called."""
    names = ("q_len", "kv_len", "q_offset")
    return names if tiling == DENSE else tuple(f"call_{name}" for name in names)  # type: ignore[return-value]


def tile_lines(tiling: Tiling, order: Order) -> Iterator[str]:
    """The query tile of a program of the grid, and its class of rows."""
    yield from placed_tile_lines(tiling, order, "tl.program_id(0)", "tl.num_programs(0)")


def head_and_tile_lines(tiling: Tiling, order: Order, neighbours: Neighbours) -> Iterator[str]:
    """The head and the query tile of a program of the grid, and its class of rows.

    The device starts programs along the grid's first axis, then along its second. Whether those are
    tiles or heads is a matter of counting; the grid is the same.
    """
    if neighbours == "tiles":
        yield from tile_lines(tiling, order)
        yield "head = tl.program_id(1)"
        return
    yield "# Programs that start one after another are the heads of one tile."
    yield "program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)"
    yield "head = program % tl.num_programs(1)"
    yield "place = program // tl.num_programs(1)"
    yield from placed_tile_lines(tiling, order, "place", "tl.num_programs(0)")


def placed_tile_lines(tiling: Tiling, order: Order, place: str, tiles: str) -> Iterator[str]:
    """The query tile at a place in the order, and its class of rows.

    Args:
        tiling: The classes.
        order: Which tiles come first.
        place: Counts the tiles of all classes of a head.
        tiles: Their number.
    """
    forward, step = order == "forward", tiling.q_step
    end = "." if forward else ", the last tiles first."
    if step == 1:
        yield f"# One program: a query tile of a head of a batch entry{end}"
        yield f"q_tile = {'' if forward else f'{tiles} - 1 - '}{place}"
        return
    yield f"# One program: a query tile of every {step}th row of a head of a batch entry{end}"
    yield f"row_class = {place} % {step}"
    last = "" if forward else f"{tiles} // {step} - 1 - "
    yield f"q_tile = {last}{place} // {step}"


def class_lines(tiling: Tiling) -> Iterator[str]:
    """Lengths and offset of the class, as `Tiling` defines them; nothing for dense programs."""
    if tiling == DENSE:
        return
    yield ""
    yield "# From here on positions and lengths count the rows and keys of the class alone."
    yield from _of_rows(tiling)
    if tiling.k_step == 1:
        yield "kv_len = call_kv_len"
        return
    yield f"k_class = {_number(tiling.k_class)}"
    yield _key_count(tiling)


def _of_rows(tiling: Tiling) -> Iterator[str]:
    """Offset and number of the rows of a class."""
    first = add(Q_OFFSET, ROW_CLASS)
    step = Const(tiling.q_step)
    if tiling.q_step == 1:
        yield "q_offset = call_q_offset"
        yield "q_len = call_q_len"
    else:
        yield f"q_class = {_number(modulo(first, step))}"
        yield f"q_offset = {_number(floordiv(first, step))}"
        left = f"call_q_len - row_class + {tiling.q_step - 1}"
        yield f"q_len = tl.maximum({left}, 0) // {tiling.q_step}"


def _key_count(tiling: Tiling) -> str:
    """The number of keys of a class."""
    keys = add(CALL_KV_LEN, multiply(Const(-1), Var("k_class")), Const(tiling.k_step - 1))
    count = f"tl.maximum({_writer().integer(keys).text}, 0) // {tiling.k_step}"
    return f"kv_len = ({count}).to(tl.int32)"


def row_lines(tiling: Tiling) -> Iterator[str]:
    """The rows of the tile; with a tiling also which rows of the call they are, and whether the
    program has anything to do (classes differ in length, and a call may lack some)."""
    yield "row_first = q_tile * BLOCK_Q"
    yield "rows = row_first + tl.arange(0, BLOCK_Q)"
    yield "row_exists = rows < q_len"
    if tiling != DENSE:
        yield "has_work = (row_first < q_len) & (kv_len > 0)"
    if tiling.q_step > 1:
        yield f"call_rows = rows * {tiling.q_step} + row_class"


def in_pairs(tiling: Tiling) -> bool:
    """Does each class of keys belong to exactly one class of rows, whatever the call's numbers?"""
    if tiling.q_step != tiling.k_step:
        return False
    match tiling.k_class:
        case Mod(value, Const(step)) if step == tiling.k_step:
            pass
        case value:
            if value != Q_CLASS:  # nothing else is sure to stay below the step
                return tiling.k_step == 1
    terms = value.terms if isinstance(value, Sum) else (value,)
    factor = 0
    for term in terms:
        match term:
            case Var() if term == Q_CLASS:
                factor += 1
            case Product((Const(by), inner)) if inner == Q_CLASS:
                factor += by
            case _ if Q_CLASS in walk(term):
                return False
    return gcd(factor, tiling.k_step) == 1


def classes_seen(tiling: Tiling) -> int:
    """How many classes of rows a class of keys may belong to."""
    return 1 if in_pairs(tiling) else tiling.q_step


def key_class_lines(tiling: Tiling) -> Iterator[str]:
    """The key tile of a program, its class of keys and how many keys that has; where classes are in
    pairs also all of its rows. Reads `key_place`, the number of the tile among all tiles of all
    classes."""
    step = tiling.k_step
    if tiling == DENSE:
        yield "k_tile = key_place"
    elif in_pairs(tiling):
        yield f"row_class = key_place % {step}"
        yield f"k_tile = key_place // {step}"
        yield from class_lines(tiling)
    elif step == 1:
        yield "k_tile = key_place"
        yield "kv_len = call_kv_len"
    else:
        yield f"k_class = key_place % {step}"
        yield f"k_tile = key_place // {step}"
        yield _key_count(tiling)


def row_class_lines(tiling: Tiling) -> Iterator[str]:
    """Where classes are not in pairs: the numbers of the rows of `row_class`, and `sees`: are the
    program's keys theirs?"""
    yield from _of_rows(tiling)
    own = "True" if tiling.k_step == 1 else f"k_class == {_number(tiling.k_class)}"
    yield f"sees = {own}"


def key_lines(tiling: Tiling, within: str = "tl.arange(0, BLOCK_K)") -> Iterator[str]:
    """The keys of a tile `k_tile`, and with classes which keys of the call they are; `within` are
    their numbers within the tile."""
    yield "k_first = k_tile * BLOCK_K"
    yield f"keys = k_first + {within}"
    yield "key_exists = keys < kv_len"
    if tiling.k_step > 1:
        yield f"call_keys = keys * {tiling.k_step} + k_class"


def rows_of_call(tiling: Tiling) -> str:
    """The vector of the rows' numbers in the call."""
    return "rows" if tiling.q_step == 1 else "call_rows"


def _number(expr: IntExpr) -> str:
    """A scalar of the class: computed in 64 bits, small enough for 32."""
    text = _writer().integer(expr)
    if text.bits is None:
        return f"tl.cast({text.text}, tl.int32)"
    return text.text if expr == Q_CLASS else f"{text.operand()}.to(tl.int32)"


def _writer() -> ExpressionWriter:
    return ExpressionWriter(_call_scalar, least_bits=64)


def _call_scalar(expr: Expr) -> Text | None:
    if expr == Q_OFFSET:
        return Text("call_q_offset", 32)
    return Text(scalar_name(expr), 32) if isinstance(expr, (Var, Param)) else None
