"""`BlockProgram` to its stable text form: one line a sweep, no addresses, no order that a run
could change.
"""

from __future__ import annotations

from patterncc.codegen.ir import (
    DENSE,
    Q_CLASS,
    BlockProgram,
    Clauses,
    Comparison,
    Direction,
    Entries,
    Literals,
    Patches,
    Range,
    Sweep,
)
from patterncc.dsl.build import add, multiply
from patterncc.dsl.mask import TRUE, Const, K, Q
from patterncc.dsl.printer import expression_text

_HEADINGS: dict[Direction, str] = {
    "forward": "query tile -> key tiles   (reads q_first, q_last)",
    "transposed": "key tile -> query tiles   (reads k_tile, k_last, q_offset, q_len)",
}

_PATCH_HEADINGS: dict[Direction, str] = {
    "forward": "query tile -> key tiles, by where they begin   (reads the box of the query tile)",
    "transposed": "key tile -> query tiles, by where they begin   (reads the box of the key tile)",
}


def format_program(program: BlockProgram) -> str:
    """The text that `--emit ir` prints."""
    lines = [
        f"pattern    {program.structure}",
        f"tiles      {program.block_q} queries x {format_keys(program)}",
        f"scalars    {', '.join(program.scalars) or '-'}",
        f"assume     {expression_text(program.assume)}",
        f"mask       {expression_text(program.mask)}",
    ]
    if program.tiling != DENSE:
        tiling = program.tiling
        query = add(multiply(Const(tiling.q_step), Q), *([Q_CLASS] if tiling.q_step > 1 else []))
        key = add(multiply(Const(tiling.k_step), K), tiling.k_class)
        lines.append(f"positions  query {expression_text(query)}, key {expression_text(key)}")
    if program.patches is not None:
        lines.append(f"patches    {format_patches(program.patches)}")
    if program.listed:
        lines.append(f"listed by  {format_clauses(program.listed)}")
    if program.ignored:
        lines.append(f"no bound   {'; '.join(map(expression_text, program.ignored))}")
    if program.decided:
        lines.append(f"by tile    {'; '.join(map(expression_text, program.decided))}")
    headings = _HEADINGS if program.patches is None else _PATCH_HEADINGS
    for direction, heading in headings.items():
        if program.gathered > 1:
            heading = heading.replace("key tile", "key" if program.block_k == 1 else "run")
        if direction == "transposed" and program.transposed is None:
            continue
        lines += ["", f"{direction}: {heading}"]
        lines += [f"  {format_sweep(sweep)}" for sweep in program.sweeps(direction)] or [
            "  nothing"
        ]
    return "\n".join(lines) + "\n"


def format_keys(program: BlockProgram) -> str:
    """What a key tile consists of: `64 keys`, `64 gathered keys`, `4 gathered runs of 16 keys`."""
    if program.gathered == 1:
        return f"{program.block_k} keys"
    if program.block_k == 1:
        return f"{program.gathered} gathered keys"
    return f"{program.gathered} gathered runs of {program.block_k} keys"


def format_patches(patches: Patches) -> str:
    """What held and passing tiles are, in each direction."""
    sizes = " x ".join(map(str, patches.sizes))
    wide = "wide" if len(patches.sizes) == 1 else "a place of its first axis"
    query, keys = shape_text(patches.query), shape_text(patches.passing_keys)
    key, queries = shape_text(patches.key), shape_text(patches.passing_queries)
    forward = f"{query} queries, {keys} keys"
    cut = ""
    if patches.query_before or patches.key_before:
        ends = (", ".join(map(expression_text, patches.before(side))) for side in ("q", "k"))
        cut = "; grids begin before the edge by ({}) for queries, ({}) for keys".format(*ends)
    return f"{forward}; transposed {key} keys, {queries} queries; of a raster {sizes} {wide}{cut}"


def shape_text(extents: tuple[int, ...]) -> str:
    """Extents of a patch: `8x16`."""
    return "x".join(map(str, extents))


def format_clauses(listed: Clauses) -> str:
    """Which entries of tables a tile asks for: `keep[head, q_first // 64 .. q_last // 64, ...]`."""
    return " and ".join(map(_clause, listed))


def _clause(clause: Literals) -> str:
    return " or ".join(map(_literal, clause))


def _literal(literal: Entries | Comparison) -> str:
    if isinstance(literal, Comparison):
        return expression_text(literal.some)
    return f"{literal.table}[{', '.join(_range(bounds) for bounds in literal.ranges)}]"


def _range(bounds: Range) -> str:
    low, high = expression_text(bounds.lo), expression_text(bounds.hi)
    return low if low == high else f"{low} .. {high}"


def format_sweep(sweep: Sweep) -> str:
    """One sweep on one line: `full     for n in [0, hi): tile n   where guard`."""
    tile = "n" if sweep.stride == 1 else f"{sweep.stride} * n"
    phase = expression_text(sweep.phase)
    if phase != "0":
        tile = f"{tile} + {phase}" if sweep.stride > 1 else f"n + {phase}"
    repeats = ""
    for number, repeat in enumerate(sweep.repeats):
        counter = f"m_{len(sweep.repeats) - 1 - number}"
        bounds = ", ".join(map(expression_text, (repeat.lo, repeat.hi)))
        repeats = f"for {counter} in [{bounds}): {repeats}"
        tile = f"{repeat.step} * {counter} + {tile}" if repeat.step > 1 else f"{counter} + {tile}"
    classes = f"for residue in [0, {sweep.classes}): " if sweep.classes > 1 else ""
    low, high = expression_text(sweep.lo), expression_text(sweep.hi)
    text = f"{sweep.kind:<8} {repeats}{classes}for n in [{low}, {high}): tile {tile}"
    return text if sweep.guard == TRUE else f"{text}   where {expression_text(sweep.guard)}"
