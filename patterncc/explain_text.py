"""An `Explanation` as text for people."""

from collections.abc import Iterable, Iterator, Sequence

from patterncc.codegen.choice import LISTED_SHARE, PATCH_COST, POINTER_PATCH_COST
from patterncc.codegen.counted_call import REFERENCE_LENGTH
from patterncc.codegen.gpu.gluon.reasons import HOPPER
from patterncc.explanation import Explanation, Group, PassLoops, Way
from patterncc.live import LiveReport
from patterncc.live_text import form_lines, growth_text
from patterncc.live_text import members as live_members
from patterncc.loops import Loop
from patterncc.notation import display_text, percent

MOST_GROUPS = 4  # groups whose loops are printed
MOST_RANGES = 6  # ranges of dead rows that are printed

_PREFIXES = ("", "k", "M", "G", "T", "P")


def format_explanation(explanation: Explanation) -> str:
    """The text, without colours, its lines about 100 columns wide where formulas allow it."""
    pattern = explanation.call.pattern
    lines = [pattern.name or "a pattern without a name", ""]
    lines += [f"  {line}" for line in explanation.mathematics]
    lines += ["", f"  text    {display_text(pattern)}"]
    if explanation.causal is not None:
        lines += [f"  causal  {'yes' if explanation.causal else 'no'}"]
    lines += ["", "parameters", *_parameters(explanation)]
    lines += ["", "call", *_call(explanation)]
    groups = explanation.groups
    if len(explanation.ways) > 1:
        lines += ["", *_ways(explanation.ways)]
    if len(groups) > 1:
        lines += ["", *_overview(explanation)]
    for group in groups[:MOST_GROUPS]:
        heading = members(explanation, group)
        lines += ["", heading, *_numbers(explanation, group)]
        for each in group.passes:
            lines += ["", *_pass(each, len(group.passes))]
    if len(groups) > MOST_GROUPS:
        rest = len(groups) - MOST_GROUPS
        lines += ["", f"The loops of {rest} more groups are printed when --layer or --head asks."]
    if groups:
        lines += ["", *_live(explanation.live)]
    return "\n".join(lines) + "\n"


def _ways(ways: Sequence[Way]) -> Iterator[str]:
    yield f"tilings, by counted work at {REFERENCE_LENGTH:,} tokens"
    width = max(len(way.tiling) for way in ways)
    for way in ways:
        cost = f"not possible: {way.reason}" if way.cost is None else f"{way.cost:>12,.0f} tiles"
        yield f"  {way.tiling:<{width}}  {cost}" + ("   <- chosen" if way.chosen else "")
    if any("gathered" in way.tiling for way in ways):
        share = f"{LISTED_SHARE:.0%} of its entries"
        yield f"  counted as if a table kept {share}, and of those for single keys one in each tile"
    if any(way.tiling.startswith("patches") and way.cost is not None for way in ways):
        pointers = f"{POINTER_PATCH_COST:g} along three axes or more"
        yield f"  a patch of a raster counts as {PATCH_COST:g} tiles, as {pointers}"


def _pass(each: PassLoops, count: int) -> Iterator[str]:
    """The loops of a pass, with a heading where they are not those of the call's own positions."""
    if count > 1 or each.q_step > 1 or each.k_step > 1:
        strides = [
            f"every {_ordinal(step)} {what}"
            for step, what in ((each.q_step, "row"), (each.k_step, "key"))
            if step > 1
        ]
        among = f", tiles of {' and '.join(strides)}" if strides else ""
        yield f"  pass {each.tiling}{among}: {each.visited:,} visited, {each.full:,} full"
    what = "tile"
    if each.run:
        what = "key" if each.run == 1 else f"run of {each.run} keys"
    if each.listed:
        yield f"  of these {_plural(what)} those that a table lists: {each.listed}"
    for term in each.ignored:
        verb = "gathered" if each.run else "visited"
        yield f"  {_plural(what)} are {verb} whatever this says: {term}"
    if each.run:
        yield f"  query tile i gathers tiles of {_plural(what)} j"
    else:
        yield "  query tile i visits key tiles j"
    yield from _loops(each.forward)
    yield ""
    yield f"  {what if each.run else 'key tile'} j is visited by query tiles i"
    yield from _loops(each.transposed)


def _plural(what: str) -> str:
    """`keys`, `tiles`, `runs of 32 keys`."""
    return what.replace("run ", "runs ") if what.startswith("run ") else f"{what}s"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 // 10 != 1 else 0, "th")
    return f"{number}{ending}"


def _live(live: LiveReport | str) -> Iterator[str]:
    yield "keys that a cache keeps at time t, for queries at t or later"
    if isinstance(live, str):
        yield f"  not known: {live}"
        return
    yield from (f"  {line}" for line in form_lines(live.form))
    for group in live.groups:
        (now,) = group.counts
        who = f"{live_members(live, group)}: " if len(live.groups) > 1 else ""
        growth = growth_text(group)
        yield (
            f"  {who}{now.keys:,} of {now.t + 1:,} keys at t = {now.t:,}, in {now.pages:,} of "
            f"{now.all_pages:,} pages of {live.page_size}" + (f"; {growth}" if growth else "")
        )


def members(explanation: Explanation, group: Group) -> str:
    """The layers and heads of a group: `layers 0, 8, 16; every head`."""
    call = explanation.call
    everyone = {member for each in explanation.groups for member in each.members}
    layers = sorted({layer for layer, _ in group.members})
    heads = sorted({head for _, head in group.members})
    if len(group.members) != len(layers) * len(heads):
        pairs = ", ".join(f"{layer}.{head}" for layer, head in group.members[:12])
        more = len(group.members) - 12
        return f"layer.head {pairs}" + (f" and {more} more" if more > 0 else "")
    every_layer = {layer for layer, _ in everyone} == set(layers)
    every_head = {head for _, head in everyone} == set(heads)
    parts = []
    if call.differs_by_layer or len(layers) != call.layers:
        parts.append("every layer" if every_layer and len(layers) > 1 else _count("layer", layers))
    if call.differs_by_head or len(heads) != call.heads:
        parts.append("every head" if every_head and len(heads) > 1 else _count("head", heads))
    return "; ".join(parts) or "every head of every layer"


def _count(what: str, numbers: Sequence[int]) -> str:
    return f"{what}{'s' if len(numbers) > 1 else ''} {ranges(numbers)}"


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers, neighbours joined: `0–3, 5`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    shown = []
    for part in parts:
        shown += [f"{part[0]}–{part[-1]}"] if len(part) > 2 else list(map(str, part))
    return ", ".join(shown)


def _parameters(explanation: Explanation) -> Iterator[str]:
    notes = explanation.parameters
    if not notes:
        yield "  none"
    width = max((len(note.name) for note in notes), default=0)
    for note in notes:
        number = "" if note.value is None else str(note.value)
        value = number if note.given else "not given"
        yield f"  {note.name:<{width}}  {note.kind:<8}  {value:>9}  {note.why}"


def _call(explanation: Explanation) -> Iterator[str]:
    call, problem = explanation.call, explanation.problem
    last = call.q_offset + call.q_len - 1
    yield f"  rows    {call.q_len:,}, at positions {call.q_offset:,} … {last:,}"
    yield f"  keys    {call.kv_len:,}"
    heads = f"{plural(call.heads, 'query head')}, {plural(call.kv_heads, 'key/value head')}"
    sizes = f"head_dim {problem.head_dim}"
    if problem.value_head_dim != problem.head_dim:
        sizes += f", of values {problem.value_head_dim}"
    yield f"  heads   {heads}, {sizes}, {problem.dtype}"
    reads = [name for name in ("layer", "head", "kv_head", "batch") if name in call.reads]
    share = f"the mask reads {' and '.join(reads)}" if reads else "all share one mask"
    yield f"  layers  {call.layers}; {share}"
    yield f"  tiles   {explanation.block_q} rows × {explanation.block_k} keys"
    if explanation.emitter is not None:
        emitter = explanation.emitter
        yield f"  kernel  {emitter.name.capitalize()} on {HOPPER}: {emitter.reason}"
    if explanation.gradients is not None:
        how = "kernels of their own" if explanation.gradients.program is None else "one pass"
        yield f"  grads   in {how} on {HOPPER}: {explanation.gradients.reason}"
    yield from _repairs(explanation)


def _repairs(explanation: Explanation) -> Iterator[str]:
    """What becomes of numbers that are not finite on GPUs."""
    isolates = explanation.problem.isolates
    by_itself = explanation.emitter is not None and explanation.emitter.name == "gluon"
    if isolates:
        line = "  repair  on GPUs of what NaN and infinities spoil, a launch more for each kernel"
        yield f"{line}, but none for Gluon's on {HOPPER}" if by_itself else line
    elif isolates is None and by_itself:
        yield f"  repair  of the output that NaN and infinities spoil, by the kernel on {HOPPER};"
        yield "          not of gradients, nor on other GPUs (isolate=True)"


def _overview(explanation: Explanation) -> Iterator[str]:
    head = ("", "density", "pairs", "visited", "full", "partial", "useful", "waste")
    rows = [head]
    for group in explanation.groups:
        work = group.work
        rows.append(
            (
                members(explanation, group),
                percent(group.density),
                f"{work.pairs:,}",
                f"{work.visited:,}",
                f"{work.full:,}",
                f"{work.visited - work.full:,}",
                quantity(work.useful_flops, "FLOP"),
                waste(group),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    yield "one head of each group"
    for row in rows:
        cells = [
            f"{row[0]:<{widths[0]}}",
            *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        yield "  " + "  ".join(cells)


def _numbers(explanation: Explanation, group: Group) -> Iterator[str]:
    work, call = group.work, explanation.call
    least, mean, most = group.keys
    times = f", {waste(group)} times these" if work.useful_flops else ""
    visited = percent(work.visited / work.tiles)
    rows = [
        (
            "visible pairs",
            f"{work.pairs:,} of {call.q_len * call.kv_len:,}: density {percent(group.density)}",
        ),
        ("keys of a row", f"{least:,} … {most:,}, mean {mean:,.1f}"),
        (
            "tiles",
            f"{work.visited:,} of {work.tiles:,} visited ({visited}): {work.full:,} full, "
            f"{work.visited - work.full:,} partial",
        ),
        ("busiest row of tiles", plural(work.longest, "tile")),
        (
            "operations",
            f"{exactly(work.useful_flops, 'FLOP')} on visible pairs; "
            f"{exactly(work.computed_flops, 'FLOP')} in visited tiles{times}",
        ),
        (
            "bytes",
            f"{exactly(work.least_bytes, 'B')} moved at least; "
            f"{exactly(work.tile_bytes, 'B')} of key and value tiles read",
        ),
        ("rows without keys", _dead(group)),
    ]
    width = max(len(name) for name, _ in rows)
    yield from (f"  {name:<{width}}  {text}" for name, text in rows)
    count = len(group.members)
    if count > 1:
        total = quantity(count * work.useful_flops, "FLOP")
        yield f"  {'in all':<{width}}  {count} heads, {total} on visible pairs"


def _dead(group: Group) -> str:
    if not group.dead:
        return "none"
    count = sum(end - start for start, end in group.dead)
    shown = ", ".join(
        f"{start:,}–{end - 1:,}" if end - start > 1 else f"{start:,}"
        for start, end in group.dead[:MOST_RANGES]
    )
    more = ", …" if len(group.dead) > MOST_RANGES else ""
    return f"{count:,} (rows {shown}{more}): their output is 0, their lse −inf"


def _loops(found: Iterable[Loop]) -> list[str]:
    return [f"    {loop}" for loop in found] or ["    none"]


def waste(group: Group) -> str:
    """Computed over useful operations."""
    work = group.work
    return f"{work.computed_flops / work.useful_flops:.3f}" if work.useful_flops else "–"


def quantity(number: float, unit: str) -> str:
    """A number with a decimal prefix: `30.1 GFLOP`."""
    power = 0
    while number >= 999.5 and power < len(_PREFIXES) - 1:
        number /= 1000
        power += 1
    return f"{number:.3g} {_PREFIXES[power]}{unit}"


def plural(number: int, what: str) -> str:
    """A number of things: `1 tile`, `4,096 tiles`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def exactly(number: int, unit: str) -> str:
    """A number to the last digit, and with a prefix: `30,090,982,400 (30.1 GFLOP)`."""
    return f"{number:,} ({quantity(number, unit)})"
