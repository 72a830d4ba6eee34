"""Live keys as text for people."""

from collections.abc import Iterator, Sequence

from patterncc.dsl.mask import Compare, K, Or, Predicate, Truth
from patterncc.live import LiveGroup, LiveReport
from patterncc.notation import layout, mathematics


def live_text(form: Predicate) -> str:
    """Which keys are live on one line: `k < 4, or k ≥ t − 4095`."""
    return ", or ".join(_terms(form))


def _terms(form: Predicate) -> list[str]:
    match form:
        case Truth(value):
            return ["every key" if value else "no key"]
        case Or(args):
            return [term for arg in args for term in _terms(arg)]
        case Compare("<=" | "<" as op, left, right) if right == K:
            return [f"k {'≥' if op == '<=' else '>'} {mathematics(left)}"]
    return [mathematics(form)]


def form_lines(form: Predicate) -> list[str]:
    """Which keys are live, on several lines where one would be long."""
    line = live_text(form)
    return [line] if len(line) <= 92 else layout(form)


def format_report(report: LiveReport) -> str:
    """The text of `patterncc live`, without colours."""
    lines = ["key k is live at time t, 0 ≤ k ≤ t, where"]
    lines += [f"  {line}" for line in form_lines(report.form)]
    if report.kv_len is None:
        lines += ["", "that is: a query at t or later may read it, in whatever call to come"]
    else:
        lines += ["", f"that is: a query from t to {report.kv_len - 1:,} reads it"]
    for group in report.groups:
        lines += ["", members(report, group), *_table(report, group)]
        growth = growth_text(group)
        lines += [f"  {growth}"] if growth else []
    return "\n".join(lines) + "\n"


def members(report: LiveReport, group: LiveGroup) -> str:
    """The layers and key/value heads of a group."""
    everyone = [member for each in report.groups for member in each.members]
    return members_text(everyone, group.members)


def members_text(everyone: Sequence[tuple[int, int]], chosen: Sequence[tuple[int, int]]) -> str:
    """Some pairs of a layer and a key/value head among all: `layers 0, 8; every key/value head`."""
    parts = []
    for place, what in ((0, "layer"), (1, "key/value head")):
        own = sorted({member[place] for member in chosen})
        known = {member[place] for member in everyone}
        if len(own) == len(known):
            parts.append(f"every {what}" if len(own) > 1 else f"{what} {own[0]}")
        else:
            parts.append(f"{what}{'s' if len(own) > 1 else ''} {ranges(own)}")
    if len(chosen) != len({layer for layer, _ in chosen}) * len({head for _, head in chosen}):
        shown = ", ".join(f"{layer}.{head}" for layer, head in sorted(chosen)[:12])
        more = len(chosen) - 12
        return f"layer.head {shown}" + (f" and {more} more" if more > 0 else "")
    return "; ".join(parts)


def ranges(numbers: list[int]) -> str:
    """Rising numbers, neighbours joined: `0–3, 5`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(
        f"{part[0]}–{part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts
    )


def _table(report: LiveReport, group: LiveGroup) -> Iterator[str]:
    rows = [("t", "live keys", "of all", f"pages of {report.page_size}", "of all", "keys a token")]
    before = None
    for count in group.counts:
        slope = "" if before is None else _slope(count.keys - before.keys, count.t - before.t)
        rows.append(
            (
                f"{count.t:,}",
                f"{count.keys:,}",
                f"{count.keys / (count.t + 1):.1%}",
                f"{count.pages:,}",
                f"{count.pages / count.all_pages:.1%}",
                slope,
            )
        )
        before = count
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        yield ("  " + "  ".join(cells)).rstrip()


def _slope(keys: int, tokens: int) -> str:
    return f"{keys / tokens:.4g}" if tokens > 0 else ""


def growth_text(group: LiveGroup) -> str:
    """Whether the number of live keys is bounded, in words; "" where there is nothing to say."""
    match group.growth:
        case "unbounded":
            return "their number grows for ever"
        case "unknown":
            return "whether their number grows for ever was not decided within the budget"
    if group.bound is None:
        return ""
    return f"never more than {group.bound.keys:,} from t = {group.bound.since:,} on"
