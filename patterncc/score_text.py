"""Score terms as `explain` prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patterncc.codegen.gpu.grad_position_source import reach_of
from patterncc.dsl.mask import variables
from patterncc.dsl.score.nodes import SCORE
from patterncc.dsl.score.printer import real_text

if TYPE_CHECKING:
    from patterncc.dsl.score.nodes import Lookup, Real
    from patterncc.dsl.score.terms import ScoreTerms


def format_terms(terms: ScoreTerms) -> str:
    """The logits of a call, their derivatives, and what a call must give, with a final line end."""
    lines = ["score terms"]
    lines.append(f"  logit      {real_text(terms.logit)}")
    if terms.logit != SCORE:
        lines.append(f"  by score   {real_text(terms.slope)}")
    lines += _by_entries(terms.table_slopes())
    if terms.sink is not None:
        lines.append(f"  sink       {real_text(terms.sink)}")
        lines += _by_entries(terms.sink_slopes())
    if terms.numbers:
        lines.append(f"  numbers    {', '.join(terms.numbers)}")
    if terms.tables:
        axes = (f"{name} ({rank} axes)" for name, rank in terms.tables.items())
        lines.append(f"  tables     {', '.join(axes)}")
    return "\n".join(lines) + "\n"


def terms_as_json(terms: ScoreTerms) -> dict[str, Any]:
    """The same for a machine: texts of the logit and the sink, their derivatives by the score and
    by each entry of a table, and the names that a call must give."""
    return {
        "logit": real_text(terms.logit),
        "slope": real_text(terms.slope),
        "sink": None if terms.sink is None else real_text(terms.sink),
        "by_entry": {
            real_text(entry): real_text(slope)
            for entry, slope in (*terms.table_slopes(), *terms.sink_slopes())
        },
        "numbers": list(terms.numbers),
        "tables": terms.tables,
    }


def _by_entries(slopes: tuple[tuple[Lookup, Real], ...]) -> list[str]:
    """The derivative by each entry of a table, and where it has a gradient."""
    lines = []
    for entry, slope in slopes:
        by_key = any("k" in variables(index) for index in entry.indexes)
        where = "on the CPU" if by_key and reach_of(entry) is None else "on CPUs and GPUs"
        lines.append(f"    by {real_text(entry)}: {real_text(slope)}; summed {where}")
    return lines
