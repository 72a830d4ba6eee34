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

if TYPE_CHECKING:
    from patterncc.dsl.mask import IntExpr, Predicate

_COLUMNS = "tl.arange(0, BLOCK_K, layout=tl.SliceLayout(0, SCORES))[None, :]"


class TileMask:
    """The texts of one mask.

    Args:
        mask: The predicate.
        documents: Numbers of documents that have been looked up, by segments and position.
        moves_boxes: Are boxes moved back that hang over the last key? Then the mask leaves out the
            keys before `k_first`.

    Attributes:
        row_lines: What is computed once for the query tile.

    Raises:
        UnsupportedError: The mask reads a cover.
    """

    def __init__(
        self,
        mask: Predicate,
        documents: Mapping[tuple[str, IntExpr], str],
        *,
        moves_boxes: bool,
    ) -> None:
        source, bounds = emit_bounded_mask(mask, documents)
        again = (Bound("<=", "k", "k_first"),) if moves_boxes else ()
        self._bounds = (*bounds, *again)
        self._source = source
        self.row_lines = source.row_lines

    def before_loops(self, *, always: bool = False) -> Iterator[str]:
        """What the lines of a tile need; `columns`, its keys counted from `k_box`, also where they
        do not."""
        bounded = any(bound.passing == "k" for bound in self._bounds)
        if bounded or always:
            yield f"columns = {_COLUMNS}"
        if bounded:
            yield "near = columns & 6"
            yield "far = columns & -7"

    def masked_scores(self) -> Iterator[str]:
        """Sets the scores of hidden pairs of the tile at `k_box` to minus infinity."""
        source = self._source
        if source.expression or any(bound.passing != "k" for bound in self._bounds):
            yield f"k = k_box + {_COLUMNS}"
            yield from source.key_lines
        if source.expression:
            yield f'scores = tl.where({source.expression}, scores, float("-inf"))'
        if self._bounds:
            yield f"scores = {kept_where('scores', [_operands(bound) for bound in self._bounds])}"


def _operands(bound: Bound) -> tuple[str, str, str]:
    passing, limit = bound.passing, bound.limit
    if passing == "k":
        passing, limit = "far", f"({limit} - k_box) - near"
    return (bound.op, *((limit, passing) if bound.op == "<=" else (passing, limit)))
