"""Integer sets as predicates: the way back from isl to the mask algebra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import islpy as isl

from patterncc.codegen.pieces import TooIntricateError
from patterncc.codegen.presburger.translate import DIV, PARAM, SET, Symbols, number
from patterncc.dsl.build import add, all_of, any_of, compare, floordiv, modulo, multiply
from patterncc.dsl.mask import FALSE, Const, IntExpr, Predicate, Var

MOST_FLOORS = 8  # of one conjunction: isl can be stuck in resolving more, without counting a step


def project(points: isl.Set, positions: Sequence[str], symbols: Sequence[str]) -> isl.Set:
    """The set without some of its positions and symbols: what has some value for them.

    Raises:
        TooIntricateError: What remains depends on too many divisions at once.
    """
    for names, kind in ((positions, SET), (symbols, PARAM)):
        for name in names:
            place = points.find_dim_by_name(kind, name)
            if place >= 0:
                points = points.project_out(kind, place, 1)
    if any(part.dim(DIV) > MOST_FLOORS for part in points.get_basic_sets()):
        raise TooIntricateError(
            f"more than {MOST_FLOORS} divisions of positions come together, which is too intricate "
            "to answer exactly within the budget of operations"
        )
    return points.compute_divs().coalesce()


def predicate_of(points: isl.Set, symbols: Symbols) -> Predicate:
    """A predicate of the positions and symbols that holds exactly at the points of a set.

    Args:
        points: Over positions that are named as the variables of the predicate; its divisions are
            computed (`project` does).
        symbols: What the parameters mean.
    """
    parts = []
    for part in points.get_basic_sets():
        simple = part.remove_redundancies()
        if not simple.is_empty():
            parts.append(_conjunction(simple, symbols))
    return any_of(*parts) if parts else FALSE


@dataclass(frozen=True, slots=True)
class _Linear:
    """`constant + sum(factor * atom)`."""

    factors: dict[IntExpr, int]
    constant: int

    def plus(self, other: _Linear, times: int = 1) -> _Linear:
        factors = dict(self.factors)
        for atom, factor in other.factors.items():
            factors[atom] = factors.get(atom, 0) + times * factor
            if factors[atom] == 0:
                del factors[atom]
        return _Linear(factors, self.constant + times * other.constant)

    def expression(self) -> IntExpr:
        terms = (multiply(Const(factor), atom) for atom, factor in self.factors.items())
        return add(*terms, Const(self.constant))


class _Reader:
    """Affine expressions of one basic set, their divisions written as floors."""

    def __init__(self, part: isl.BasicSet, symbols: Symbols) -> None:
        self.positions = [Var(str(part.get_dim_name(SET, i))) for i in range(part.dim(SET))]
        names = [str(part.get_dim_name(PARAM, i)) for i in range(part.dim(PARAM))]
        self.parameters = [symbols.scalars.meaning[name] for name in names]
        self.floors: list[_Linear] = []
        self.inside: dict[IntExpr, tuple[_Linear, int]] = {}
        for i in range(part.dim(DIV)):
            affine = part.get_div(i)
            divisor = number(affine.get_denominator_val())
            self.floors.append(self._floor(self.linear(affine.scale_val(divisor)), divisor))

    def _floor(self, inner: _Linear, divisor: int) -> _Linear:
        """`floor(inner / divisor)` as a floor with small factors, positive if possible, and the
        rest.
        """
        signs = (
            (2 if isinstance(atom, Var) else 1) * (1 if factor > 0 else -1)
            for atom, factor in inner.factors.items()
        )
        if sum(signs) < 0:
            # floor(-x / d) == -floor((x + d - 1) / d)
            turned = _Linear({}, divisor - 1).plus(inner, -1)
            return _Linear({}, 0).plus(self._floor(turned, divisor), -1)
        half = (divisor - 1) // 2
        quotients = {atom: (f + half) // divisor for atom, f in inner.factors.items()}
        whole = _Linear(
            {atom: quotient for atom, quotient in quotients.items() if quotient},
            inner.constant // divisor,
        )
        rest = inner.plus(whole, -divisor)
        floor = floordiv(rest.expression(), Const(divisor))
        if isinstance(floor, Const):
            return _Linear(whole.factors, whole.constant + floor.value)
        self.inside[floor] = (rest, divisor)
        return whole.plus(_Linear({floor: 1}, 0))

    def linear(self, affine: isl.Aff) -> _Linear:
        """An affine expression of the positions, the symbols and the divisions known so far."""
        result = _Linear({}, number(affine.get_constant_val()))
        kinds = (
            (isl.dim_type.in_, [_Linear({atom: 1}, 0) for atom in self.positions]),
            (PARAM, [_Linear({atom: 1}, 0) for atom in self.parameters]),
            (DIV, self.floors),
        )
        for kind, values in kinds:
            for i, value in enumerate(values):
                if factor := number(affine.get_coefficient_val(kind, i)):
                    result = result.plus(value, factor)
        return result

    def with_remainders(self, value: _Linear) -> _Linear:
        """`x - d * floor(x / d)` written `x % d` where that leaves fewer terms."""
        for floor, (inner, divisor) in self.inside.items():
            factor = value.factors.get(floor, 0)
            if factor == 0 or factor % divisor:
                continue
            times = -factor // divisor
            remainder = modulo(inner.expression(), Const(divisor))
            # value = rest + times * (inner - divisor * floor): the bracket is the remainder.
            rest = value.plus(_Linear({floor: factor}, 0), -1).plus(inner, -times)
            rewritten = rest.plus(_Linear({remainder: times}, 0))
            if len(rewritten.factors) < len(value.factors):
                value = rewritten
        return value


def _conjunction(part: isl.BasicSet, symbols: Symbols) -> Predicate:
    reader = _Reader(part, symbols)
    conditions = []
    for constraint in part.get_constraints():
        if not constraint.is_div_constraint():
            value = reader.with_remainders(reader.linear(constraint.get_aff()))
            conditions.append(_condition(value, constraint.is_equality(), reader.positions))
    return all_of(*conditions)


def _condition(value: _Linear, equality: bool, positions: Sequence[Var]) -> Predicate:
    """`value >= 0` or `value == 0`, the last position that stands alone on a side of its own."""
    for position in reversed(positions):
        factor = value.factors.get(position, 0)
        if abs(factor) == 1:
            rest = value.plus(_Linear({position: factor}, 0), -1)
            side = _Linear({}, 0).plus(rest, -factor).expression()
            if equality:
                return compare("==", position, side)
            return compare(">=" if factor > 0 else "<=", position, side)
    left = {atom: factor for atom, factor in value.factors.items() if factor > 0}
    right = {atom: -factor for atom, factor in value.factors.items() if factor < 0}
    if not left:  # -x + c >= 0: x <= c
        sides = (_Linear({}, value.constant), _Linear(right, 0))
    elif value.constant < 0 or not right:
        sides = (_Linear(left, 0), _Linear(right, -value.constant))
    else:
        sides = (_Linear(left, value.constant), _Linear(right, 0))
    return compare("==" if equality else ">=", sides[0].expression(), sides[1].expression())
