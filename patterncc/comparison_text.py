"""A `Comparison` of two patterns as text for people."""

from collections.abc import Iterator

from patterncc.codegen.facts.compare import Comparison, Witness
from patterncc.dsl.mask import variables
from patterncc.dsl.pattern import Pattern
from patterncc.notation import layout

_WIDTH = 80  # columns of a mask beside its name

_RELATIONS = {
    "equal": "A and B are equal",
    "within": "A is within B: every pair that A allows, B allows",
    "contains": "A contains B: every pair that B allows, A allows",
    "disjoint": "A and B are disjoint: no pair is allowed by both",
    "different": "A and B are different, and neither contains the other",
}


def format_comparison(comparison: Comparison, left: Pattern, right: Pattern) -> str:
    """The text, without colours.

    Args:
        comparison: What to print.
        left, right: The patterns that were compared.
    """
    lines = [*_pattern("A", left), *_pattern("B", right), ""]
    lines += [_RELATIONS[comparison.relation], f"  for all {scope(comparison, left, right)}"]
    lines += _witnesses(comparison)
    if comparison.at_defaults is not None:
        defaults = comparison.at_defaults
        lines += ["", f"With the defaults: {_RELATIONS[defaults.relation]}"]
        lines += [f"  {', '.join(_defaults(left, right)) or 'none'}"]
        lines += _witnesses(defaults)
    return "\n".join(lines) + "\n"


def scope(comparison: Comparison, left: Pattern, right: Pattern) -> str:
    """What the relation holds for all of: `lengths, offsets and layers, and all sinks, window`."""
    reads = variables(left.body) | variables(right.body)
    kinds = ["lengths", "offsets"]
    if reads & {"head", "kv_head", "heads", "kv_heads"}:
        kinds.append("heads")
    if reads & {"layer", "layers"}:
        kinds.append("layers")
    text = f"{', '.join(kinds[:-1])} and {kinds[-1]}"
    if comparison.symbols:
        text += f", and all values of {', '.join(comparison.symbols)}"
    return text


def _pattern(letter: str, pattern: Pattern) -> Iterator[str]:
    lines = layout(pattern.body, _WIDTH)
    if pattern.name:
        yield f"{letter}  {pattern.name}"
        yield from (f"     {line}" for line in lines)
    else:
        yield f"{letter}  {lines[0]}"
        yield from (f"   {line}" for line in lines[1:])


def _witnesses(comparison: Comparison) -> Iterator[str]:
    for letter, witness in (("A", comparison.left_only), ("B", comparison.right_only)):
        if witness is not None:
            yield ""
            yield f"only {letter} allows  q = {witness.q}, k = {witness.k}"
            yield f"  where {witness_values(witness)}"
            if witness.only_outside:
                yield "  There is no such pair in calls whose rows lie within the keys."


def witness_values(witness: Witness) -> str:
    """The numbers of the call in which a pair was found: `kv_len = 5, q_len = 5, q_offset = 0`."""
    return ", ".join(f"{name} = {value}" for name, value in witness.values)


def _defaults(*patterns: Pattern) -> list[str]:
    """The defaults of both patterns, `A: sinks = 4` where they are not the same in both."""
    values: dict[str, list[tuple[str, int]]] = {}
    for letter, pattern in zip("AB", patterns, strict=True):
        for name, value in pattern.defaults.items():
            values.setdefault(name, []).append((letter, value))
    shown = []
    for name, given in sorted(values.items()):
        if len({value for _, value in given}) == 1:
            shown.append(f"{name} = {given[0][1]}")
        else:
            shown += [f"{name} = {value} in {letter}" for letter, value in given]
    return shown
