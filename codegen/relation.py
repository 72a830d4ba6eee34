"""The relation between positions as an integer set: the only file that knows isl.

A `Relation` holds the allowed pairs (q, k) with every run-time number symbolic, and answers which
tiles they touch and fill, as plain `Piece`s. What isl cannot express is an `UnsupportedError` that
names the term; a computation that outgrows its budget is one too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce

import islpy as isl

from patterncc.codegen.pieces import Constraint, Floor, Linear, Piece
from patterncc.codegen.scalars import Scalars, is_affine, is_scalar, register
from patterncc.dsl.build import add, floordiv, multiply
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import (
    Abs,
    And,
    Branch,
    Compare,
    Const,
    FloorDiv,
    IntExpr,
    Max,
    Min,
    Mod,
    Not,
    Or,
    Param,
    Predicate,
    Product,
    Select,
    Sum,
    Truth,
    Var,
)
from patterncc.dsl.printer import expression_text

OPERATION_BUDGET = 2_000_000  # isl's own count: a second or two

MOST_FLOORS = 5  # of one conjunction, before they are resolved
_QUOTA = "maximal number of operations"  # what isl says when the budget is used up

_SET = isl.dim_type.set
_PARAM = isl.dim_type.param
_DIV = isl.dim_type.div


class _Translator:
    """Masks to isl sets over `[q, k]`, bottom up."""

    def __init__(self, context: isl.Context, scalars: Scalars, names: Sequence[str]) -> None:
        self.scalars = scalars
        self.space = isl.Space.create_from_names(context, set=["q", "k"], params=list(names))
        self.local = isl.LocalSpace.from_space(self.space)
        self.position = {name: i for i, name in enumerate(names)}

    def constant(self, value: int) -> isl.PwAff:
        return isl.PwAff.from_aff(isl.Aff.zero_on_domain(self.local).add_constant_val(value))

    def symbol(self, name: str) -> isl.PwAff:
        return isl.PwAff.from_aff(isl.Aff.var_on_domain(self.local, _PARAM, self.position[name]))

    def integer(self, expr: IntExpr) -> isl.PwAff:
        match expr:
            case Const(value):
                return self.constant(value)
            case Var("q"):
                return isl.PwAff.from_aff(isl.Aff.var_on_domain(self.local, _SET, 0))
            case Var("k"):
                return isl.PwAff.from_aff(isl.Aff.var_on_domain(self.local, _SET, 1))
            case Var(name) | Param(name):
                return self.symbol(name)
        if is_scalar(expr) and not is_affine(expr):
            return self.symbol(self.scalars.opaque(expr))
        match expr:
            case Sum(terms):
                return reduce(isl.PwAff.add, map(self.integer, terms))
            case Product((Const(value), factor)):
                return self.integer(factor).scale_val(value)
            case FloorDiv(inner, Const(divisor)) if divisor > 0:
                return self.integer(inner).scale_down_val(divisor).floor()
            case Mod(inner, Const(divisor)) if divisor > 0:
                return self.integer(inner).mod_val(divisor)
            case Min(args):
                return reduce(isl.PwAff.min, map(self.integer, args))
            case Max(args):
                return reduce(isl.PwAff.max, map(self.integer, args))
            case Abs(inner):
                signed = self.integer(inner)
                return signed.max(signed.neg())
            case Select(condition, then, otherwise):
                where = self.predicate(condition)
                return (
                    self.integer(then)
                    .intersect_domain(where)
                    .union_add(self.integer(otherwise).intersect_domain(where.complement()))
                )
        raise UnsupportedError(
            f"`{expression_text(expr)}` is not linear in the positions: divide and multiply "
            "them by numbers that are fixed when the pattern is compiled"
        )

    def predicate(self, expr: Predicate) -> isl.Set:
        match expr:
            case Truth(value):
                universe = isl.Set.universe(self.space)
                return universe if value else universe.complement()
        if is_scalar(expr):
            flag = self.symbol(self.scalars.flag(expr))
            return flag.eq_set(self.constant(1))
        match expr:
            case Compare(op, left, right):
                a, b = self.integer(left), self.integer(right)
                compare: dict[str, Callable[[isl.PwAff, isl.PwAff], isl.Set]] = {
                    "==": isl.PwAff.eq_set,
                    "!=": isl.PwAff.ne_set,
                    "<": isl.PwAff.lt_set,
                    "<=": isl.PwAff.le_set,
                }
                return compare[op](a, b)
            case And(args):
                return reduce(isl.Set.intersect, map(self.predicate, args))
            case Or(args):
                return reduce(isl.Set.union, map(self.predicate, args)).coalesce()
            case Not(arg):
                return self.predicate(arg).complement()
            case Branch(condition, then, otherwise):
                where = self.predicate(condition)
                return (
                    where.intersect(self.predicate(then))
                    .union(where.complement().intersect(self.predicate(otherwise)))
                    .coalesce()
                )
        raise UnsupportedError(f"`{expression_text(expr)}` cannot be lowered")


class Relation:
    """The allowed pairs (q, k) of a mask, with lengths, offsets and run-time numbers symbolic.

    Args:
        body: The mask.
        extra: Symbols that the tile geometry needs besides those of the mask (`q_first`, `kv_len`,
            ...).

    Raises:
        UnsupportedError: For a term outside what can be computed with exactly (tables, segments,
            products).
    """

    def __init__(self, body: Predicate, extra: Sequence[str]) -> None:
        self.scalars = Scalars()
        register(body, self.scalars)
        for name in extra:
            self.scalars.named(Var(name))
        self.names = sorted(self.scalars.meaning)
        self.context = isl.Context()
        self.context.set_max_operations(OPERATION_BUDGET)
        with self._budget():
            translator = _Translator(self.context, self.scalars, self.names)
            self.pairs = translator.predicate(body).coalesce()

    @contextmanager
    def _budget(self) -> Iterator[None]:
        try:
            yield
        except isl.Error as error:
            if _QUOTA in str(error):
                raise UnsupportedError(
                    "this pattern is too intricate to lower exactly within the compiler's budget"
                ) from error
            raise

    def _params(self, conditions: Sequence[str]) -> isl.Set:
        flags = [f"0 <= {name} <= 1" for name in sorted(self.scalars.flags)]
        text = " and ".join([*conditions, *flags]) or "1 = 1"
        return isl.Set.read_from_str(self.context, f"[{', '.join(self.names)}] -> {{ : {text} }}")

    def _region(self, conditions: Sequence[str]) -> isl.Set:
        text = " and ".join(conditions)
        return isl.Set.read_from_str(
            self.context, f"[{', '.join(self.names)}] -> {{ [tile, q, k] : {text} }}"
        )

    def tiles(
        self,
        region: Sequence[str],
        exists: Sequence[str],
        whole: Sequence[str],
        context: Sequence[str],
    ) -> tuple[list[Piece], list[Piece]]:
        """Full and partial tiles, each as disjoint pieces that together are exact.

        Args:
            region: Which (q, k) belong to which tile, in isl's syntax over `tile, q, k` and the
                symbols.
            exists: Conditions under which a pair of the region exists at all.
            whole: Conditions on a pair that a full tile must meet besides being allowed.
            context: What may be taken for granted of the symbols.
        """
        with self._budget():
            context_set = self._params(context)
            base = self._region(region).intersect_params(context_set)
            allowed = self._lift(self.pairs)
            present = self._region(exists) if exists else isl.Set.universe(base.get_space())
            entire = self._region(whole) if whole else isl.Set.universe(base.get_space())
            visited = _project(base.intersect(allowed).intersect(present))
            full = visited.subtract(_project(base.subtract(allowed.intersect(entire)))).coalesce()
            # One term of a union that alone makes a tile full gives the loops a person would write;
            # only what no single term explains is left to isl's own decomposition.
            natural = []
            terms = allowed.get_basic_sets()
            if 1 < len(terms) <= 16:
                for term in terms:
                    alone = visited.subtract(
                        _project(base.subtract(term.to_set().intersect(entire)))
                    )
                    natural.append(alone.coalesce())
            full_pieces = _disjoint(
                [part for whole_part in [*natural, full] for part in _simplest_first(whole_part)]
            )
            partial_pieces = []
            for part in _disjoint(_simplest_first(visited)):
                partial_pieces.extend(
                    _disjoint(_simplest_first(part.to_set().subtract(full).coalesce()))
                )
            return (
                [piece for part in full_pieces for piece in self._piece(part, context_set)],
                [piece for part in partial_pieces for piece in self._piece(part, context_set)],
            )

    def _lift(self, pairs: isl.Set) -> isl.Set:
        return pairs.insert_dims(_SET, 0, 1).set_dim_name(_SET, 0, "tile")

    # -- isl basic sets to plain data

    def _piece(self, part: isl.BasicSet, context: isl.Set) -> Iterator[Piece]:
        simple = part.to_set().gist_params(context.params()).compute_divs().coalesce()
        for basic in simple.get_basic_sets():
            info = basic.to_set().get_stride_info(0)
            stride = _int(info.get_stride())
            offset: IntExpr = Const(0)
            if stride > 1:
                offset = self.affine(info.get_offset())
                mapped = _strided(basic, stride, info.get_offset())
                for inner in mapped.compute_divs().get_basic_sets():
                    yield self._constraints(inner.remove_redundancies(), stride, offset, context)
            else:
                yield self._constraints(basic.remove_redundancies(), 1, offset, context)

    def _constraints(
        self, basic: isl.BasicSet, stride: int, offset: IntExpr, context: isl.Set
    ) -> Piece:
        floors = _Floors(self, basic)
        constraints = []
        for constraint in basic.get_constraints():
            if constraint.is_div_constraint():
                continue
            value = floors.linear(constraint.get_aff())
            constraints.append(Constraint(value, constraint.is_equality()))
        return Piece(stride, offset, tuple(constraints), _span(basic, floors.tile_floors, context))

    def affine(self, affine: isl.Aff) -> IntExpr:
        """A quasi-affine expression of the symbols alone."""
        denominator = _int(affine.get_denominator_val())
        whole = affine.scale_val(denominator)
        terms = [Const(_int(whole.get_constant_val())), *self.symbols(whole)]
        for i in range(affine.dim(_DIV)):
            if factor := _int(whole.get_coefficient_val(_DIV, i)):
                terms.append(multiply(Const(factor), self.affine(affine.get_div(i))))
        return floordiv(add(*terms), Const(denominator))

    def symbols(self, affine: isl.Aff) -> list[IntExpr]:
        """The terms of an integer affine expression in the symbols."""
        terms = []
        for i, name in enumerate(self.names):
            factor = affine.get_coefficient_val(_PARAM, i)
            if not factor.is_zero():
                terms.append(multiply(Const(_int(factor)), self.scalars.meaning[name]))
        return terms


class _Floors:
    """The floors of one basic set, split into those that depend on the tile and those that
    do not.
    """

    def __init__(self, relation: Relation, basic: isl.BasicSet) -> None:
        self.relation = relation
        self.values: list[Linear] = []
        self.tile_floors: list[int] = []
        for i in range(basic.dim(_DIV)):
            affine = basic.get_div(i)
            divisor = _int(affine.get_denominator_val())
            arg = self.linear(affine.scale_val(divisor))
            if arg.tile == 0 and not arg.floors:
                self.values.append(Linear(0, (), floordiv(arg.rest, Const(divisor))))
            else:
                self.values.append(Linear(0, ((1, Floor(arg, divisor)),), Const(0)))
                self.tile_floors.append(i)

    def linear(self, affine: isl.Aff) -> Linear:
        """An integer affine expression of the tile, the symbols and the floors known so far."""
        rest = [Const(_int(affine.get_constant_val())), *self.relation.symbols(affine)]
        floors: list[tuple[int, Floor]] = []
        for i, value in enumerate(self.values):
            if factor := _int(affine.get_coefficient_val(_DIV, i)):
                floors.extend((factor * inner, floor) for inner, floor in value.floors)
                rest.append(multiply(Const(factor), value.rest))
        tile = _int(affine.get_coefficient_val(isl.dim_type.in_, 0))
        return Linear(tile, tuple(floors), add(*rest))


# -------------------------------------------------------------------------------------- isl helpers


def _int(value: isl.Val) -> int:
    """The number; isl gives no text of it, and no error, once its operations are used up."""
    text = value.to_str()
    if text is None:
        raise isl.Error(_QUOTA)
    return int(text)


def _project(tiles: isl.Set) -> isl.Set:
    """The tiles of which some pair is in the set."""
    projected = tiles.project_out(_SET, 1, 2)
    # Resolving many floors at once can outlast any wait without isl counting an operation.
    if any(basic.dim(_DIV) > MOST_FLOORS for basic in projected.get_basic_sets()):
        raise isl.Error(_QUOTA)
    return projected.compute_divs().coalesce()


def _tile_floors(basic: isl.BasicSet) -> int:
    return sum(
        1 for i in range(basic.dim(_DIV)) if basic.get_div(i).involves_dims(isl.dim_type.in_, 0, 1)
    )


def _simplest_first(tiles: isl.Set) -> list[isl.BasicSet]:
    """Basic sets with fewer floors of the tile first: plain intervals keep their shape when made
    disjoint.
    """
    parts = list(tiles.compute_divs().get_basic_sets())
    return sorted(parts, key=lambda part: (_tile_floors(part), part.n_constraint(), part.to_str()))


def _disjoint(parts: Sequence[isl.BasicSet]) -> list[isl.BasicSet]:
    """The same union as disjoint basic sets, earlier parts kept whole."""
    result: list[isl.BasicSet] = []
    covered: isl.Set | None = None
    for part in parts:
        rest = part.to_set()
        if covered is not None:
            rest = rest.subtract(covered).coalesce().make_disjoint().coalesce()
        fresh = [basic for basic in rest.get_basic_sets() if not basic.is_empty()]
        result.extend(fresh)
        covered = part.to_set() if covered is None else covered.union(part.to_set())
    return result


def _strided(basic: isl.BasicSet, stride: int, offset: isl.Aff) -> isl.Set:
    """`{ n : stride * n + offset in basic }`."""
    count = isl.Aff.var_on_domain(offset.get_domain_local_space(), _SET, 0).scale_val(stride)
    target = isl.MultiAff.from_aff(count.add(offset))
    return basic.to_set().preimage_multi_aff(target)


def _span(basic: isl.BasicSet, tile_floors: Sequence[int], context: isl.Set) -> int | None:
    """How far apart two tiles can be that meet the constraints without floors of the tile."""
    if not tile_floors:
        return None
    relaxed = isl.BasicSet.universe(basic.get_space())
    for constraint in basic.get_constraints():
        if not constraint.involves_dims(_DIV, 0, basic.dim(_DIV)):
            relaxed = relaxed.add_constraint(constraint)
    pairs = relaxed.flat_product(relaxed).to_set().intersect_params(context.params())
    space = pairs.get_space()
    difference = isl.Aff.var_on_domain(isl.LocalSpace.from_space(space), _SET, 1).sub(
        isl.Aff.var_on_domain(isl.LocalSpace.from_space(space), _SET, 0)
    )
    most = pairs.max_val(difference)
    return _int(most) if most.is_int() else None
