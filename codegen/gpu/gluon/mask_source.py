"""The mask of a tile in Gluon, with few instructions for each pair.

A thread holds pairs of columns that are 8 apart, the same ones in each of its rows. A column is
the sum of a number that the compiler knows, `far`, and of one that depends on the thread alone,
`near`. So `k < limit` is `far < limit - k_box - near`: the right side is computed once for each
row, and a pair takes a comparison with a constant and a choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.gluon.dialect import kept_where
from patterncc.codegen.gpu.mask_source import Bound, emit_bounded_mask
from patterncc.codegen.gpu.separate import ROWS

if TYPE_CHECKING:
    from patterncc.codegen.gpu.separate import Held
    from patterncc.dsl.mask import IntExpr, Predicate


class TileMask:
    """The texts of one mask.

    Args:
        mask: The predicate.
        documents: Numbers of documents that have been looked up, by segments and position.
        moves_boxes: Are boxes moved back that hang over the last key? Then the mask leaves out the
            keys before `k_first`.
        held: The side of a tile that the program keeps: the rows of the products; the other side
            are their columns.

    Attributes:
        held_lines: What is computed once for the side that is held.

    Raises:
        UnsupportedError: The mask reads a cover.
    """

    def __init__(
        self,
        mask: Predicate,
        documents: Mapping[tuple[str, IntExpr], str],
        *,
        moves_boxes: bool = False,
        held: Held = ROWS,
    ) -> None:
        source, bounds = emit_bounded_mask(mask, documents, held)
        again = (Bound("<=", "k", "k_first"),) if moves_boxes else ()
        self._bounds = (*bounds, *again)
        self._expression = source.expression
        rows = held.side == "row"
        self._passing, self._box = ("k", "k_box") if rows else ("q", "(q_offset + row_first)")
        lines = (source.row_lines, source.key_lines)
        self.held_lines, self._passing_lines = lines if rows else lines[::-1]
        block = "BLOCK_K" if rows else "BLOCK_Q"
        self._columns = f"tl.arange(0, {block}, layout=tl.SliceLayout(0, SCORES))[None, :]"

    def before_loops(self, *, always: bool = False) -> Iterator[str]:
        """What the lines of a tile need; `columns`, its keys counted from `k_box` or its rows, also
        where they do not."""
        bounded = any(bound.passing == self._passing for bound in self._bounds)
        if bounded or always:
            yield f"columns = {self._columns}"
        if bounded:
            yield "near = columns & 6"
            yield "far = columns & -7"

    def masked_scores(self) -> Iterator[str]:
        """Sets the scores of hidden pairs of a tile to minus infinity: of the one at `k_box`, or at
        `row_first` where keys are held."""
        passing = self._passing
        if self._expression or any(bound.passing != passing for bound in self._bounds):
            yield f"{passing} = {self._box} + {self._columns}"
            yield from self._passing_lines
        if self._expression:
            yield f'scores = tl.where({self._expression}, scores, float("-inf"))'
        if self._bounds:
            operands = [self._operands(bound) for bound in self._bounds]
            yield f"scores = {kept_where('scores', operands)}"

    def _operands(self, bound: Bound) -> tuple[str, str, str]:
        passing, limit = bound.passing, bound.limit
        if passing == self._passing:
            if self._box != "k_box":
                # Positions of rows may have any sign: what is beyond the tile may be so far from it
                # that the difference would wrap.
                limit = f"tl.minimum(tl.maximum({limit}, {self._box} - 1), {self._box} + BLOCK_Q)"
            passing, limit = "far", f"({limit} - {self._box}) - near"
        return (bound.op, *((limit, passing) if bound.op == "<=" else (passing, limit)))
