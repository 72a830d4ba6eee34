"""Relations between positions as integer sets: the only package that knows isl.

`translate` turns masks into sets, `relation` asks which tiles a set of pairs touches and fills, and
`export` writes sets of tiles as plain data. What isl cannot express is an `UnsupportedError` that
names the term; a computation that outgrows its budget is one too.
"""

from patterncc.codegen.presburger.cover import without_covers
from patterncc.codegen.presburger.relation import Relation

__all__ = ["Relation", "without_covers"]
