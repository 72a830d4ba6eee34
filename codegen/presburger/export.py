"""Basic sets of isl as plain data: `Piece`s of linear constraints, with the floors that remain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import islpy as isl

from patterncc.codegen.pieces import Constraint, Floor, Linear, Piece
from patterncc.codegen.presburger.translate import DIV, SET, Symbols, number
from patterncc.dsl.build import add, floordiv, multiply
from patterncc.dsl.mask import Const, IntExpr


def pieces(part: isl.BasicSet, context: isl.Set, symbols: Symbols) -> Iterator[Piece]:
    """The tiles of a one-dimensional basic set, given what holds of the symbols."""
    simple = part.to_set().gist_params(context.params()).compute_divs()
    for basic in simple.get_basic_sets():
        info = basic.to_set().get_stride_info(0)
        stride = number(info.get_stride())
        if stride == 1:
            yield _piece(basic.remove_redundancies(), 1, Const(0), context, symbols)
            continue
        offset = symbols.quasi_affine(info.get_offset())
        for inner in _strided(basic, stride, info.get_offset()).compute_divs().get_basic_sets():
            yield _piece(inner.remove_redundancies(), stride, offset, context, symbols)


def _piece(
    basic: isl.BasicSet, stride: int, offset: IntExpr, context: isl.Set, symbols: Symbols
) -> Piece:
    floors = _Floors(symbols, basic)
    constraints = []
    for constraint in basic.get_constraints():
        if not constraint.is_div_constraint():
            value = floors.linear(constraint.get_aff())
            constraints.append(Constraint(value, constraint.is_equality()))
    return Piece(stride, offset, tuple(constraints), _span(basic, floors.tile_floors, context))


class _Floors:
    """The floors of one basic set, split into those that depend on the tile and those that
    do not.
    """

    def __init__(self, symbols: Symbols, basic: isl.BasicSet) -> None:
        self.symbols = symbols
        self.values: list[Linear] = []
        self.tile_floors: list[int] = []
        for i in range(basic.dim(DIV)):
            affine = basic.get_div(i)
            divisor = number(affine.get_denominator_val())
            arg = self.linear(affine.scale_val(divisor))
            if arg.tile == 0 and not arg.floors:
                self.values.append(Linear(0, (), floordiv(arg.rest, Const(divisor))))
            else:
                self.values.append(Linear(0, ((1, Floor(arg, divisor)),), Const(0)))
                self.tile_floors.append(i)

    def linear(self, affine: isl.Aff) -> Linear:
        """An integer affine expression of the tile, the symbols and the floors known so far."""
        rest = [Const(number(affine.get_constant_val())), *self.symbols.terms(affine)]
        floors: list[tuple[int, Floor]] = []
        for i, value in enumerate(self.values):
            if factor := number(affine.get_coefficient_val(DIV, i)):
                floors.extend((factor * inner, floor) for inner, floor in value.floors)
                rest.append(multiply(Const(factor), value.rest))
        tile = number(affine.get_coefficient_val(isl.dim_type.in_, 0))
        return Linear(tile, tuple(floors), add(*rest))


def _strided(basic: isl.BasicSet, stride: int, offset: isl.Aff) -> isl.Set:
    """`{ n : stride * n + offset in basic }`."""
    count = isl.Aff.var_on_domain(offset.get_domain_local_space(), SET, 0).scale_val(stride)
    target = isl.MultiAff.from_aff(count.add(offset))
    return basic.to_set().preimage_multi_aff(target)


def _span(basic: isl.BasicSet, tile_floors: Sequence[int], context: isl.Set) -> int | None:
    """How far apart two tiles can be that meet the constraints without floors of the tile."""
    if not tile_floors:
        return None
    relaxed = isl.BasicSet.universe(basic.get_space())
    for constraint in basic.get_constraints():
        if not constraint.involves_dims(DIV, 0, basic.dim(DIV)):
            relaxed = relaxed.add_constraint(constraint)
    pairs = relaxed.flat_product(relaxed).to_set().intersect_params(context.params())
    space = pairs.get_space()
    difference = isl.Aff.var_on_domain(isl.LocalSpace.from_space(space), SET, 1).sub(
        isl.Aff.var_on_domain(isl.LocalSpace.from_space(space), SET, 0)
    )
    most = pairs.max_val(difference)
    return number(most) if most.is_int() else None
