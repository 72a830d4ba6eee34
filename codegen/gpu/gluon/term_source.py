"""Score terms in a Gluon kernel: what makes logits of a tile's scores, and the sink that a row
starts from. The texts are those of `score_source`, in the layout of the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.forward_source import PEAK_FLOOR
from patterncc.codegen.gpu.gluon.warps import ROWS
from patterncc.codegen.gpu.kernel_terms import sink_logit, tile_logit
from patterncc.codegen.gpu.score_source import TermWriter
from patterncc.dsl.score.nodes import coordinates_read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.ir import Tiling
    from patterncc.dsl.score.nodes import Real
    from patterncc.dsl.score.terms import ScoreTerms


class TileTerms:
    """The texts of one kernel.

    Args:
        terms: The score terms; Gluon knows them (`reasons.terms_reason`).
        tiling: The classes that its positions count in.
        resumes: An earlier pass has begun with the sink.
        scores: The layout of a tile's scores.

    Attributes:
        program_lines: What is computed once for the query tile, after `q`.
        tile_lines: What makes logits of `scores`, in units of `log 2`; empty where they are the
            scores, which then are still to be scaled.
        reads_key: Do they read `k`?
    """

    def __init__(self, terms: ScoreTerms, tiling: Tiling, scores: str, *, resumes: bool) -> None:
        self._layout = f"tl.SliceLayout(1, {scores})"
        logit = tile_logit(terms, tiling)
        # Of several passes the first one starts from the sink, as from an earlier key.
        self._sink = None if resumes else sink_logit(terms, tiling)
        self._logit = logit
        self.program_lines: tuple[str, ...] = ()
        self.tile_lines: tuple[str, ...] = ()
        self.reads_key = logit is not None and "k" in coordinates_read(logit)
        if logit is not None:
            writer = TermWriter([logit], "k")
            last = f"scores = {writer.write(logit)}"
            self.program_lines = tuple(writer.program_lines)
            self.tile_lines = (*writer.tile_lines, last)

    @property
    def exprs(self) -> tuple[Real, ...]:
        """What the kernel computes."""
        return tuple(expr for expr in (self._logit, self._sink) if expr is not None)

    @property
    def scale(self) -> str:
        """What scores are multiplied by after they were masked."""
        return "" if self.tile_lines else " * scale"

    @property
    def has_sink(self) -> bool:
        """Do rows start from a sink?"""
        return self._sink is not None

    def start(self) -> Iterator[str]:
        """The peak and the sum of weights of a row that has seen its sink alone."""
        assert self._sink is not None
        writer = TermWriter([self._sink], "", position="row_positions", prefix="sink_")
        sink = writer.write(self._sink, "program")
        if "q" in coordinates_read(self._sink):
            yield "row_positions = q_offset + rows"
        yield from writer.program_lines
        yield "# The sink is the first key: its weight is 1, its value 0."
        yield f"sink = tl.full([{ROWS}], 0.0, tl.float32, layout={self._layout}) + {sink}"
        yield f"peak = tl.maximum(sink, {PEAK_FLOOR})"
        yield 'total = tl.where(sink == float("-inf"), 0.0, 1.0)'
