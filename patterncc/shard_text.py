"""A `ShardPlan` as text for people."""

from collections.abc import Iterator, Sequence

from patterncc.codegen.facts.runs import Run
from patterncc.codegen.facts.sharding import RankPlan, ShardGroup, ShardPlan, Shards
from patterncc.dsl.pattern import Pattern
from patterncc.live_text import live_text, members_text
from patterncc.notation import layout, percent

MOST_SOURCES = 4  # sources of one rank that are printed
MOST_RUNS = 3  # runs of one transfer that are printed
MOST_GROUPS = 4

_KINDS = {
    "local": "nothing is fetched",
    "broadcast": "all fetch the same keys",
    "halo": "fetched from near ranks",
    "halo+broadcast": "fetched from near ranks, but for keys that all fetch",
    "all-gather": "all fetch all keys",
    "exchange": "fetched from ranks far and near",
}


def format_plan(
    plan: ShardPlan, pattern: Pattern, others: Sequence[tuple[str, ShardPlan | str]] = ()
) -> str:
    """The text, without colours.

    Args:
        plan: What to print.
        pattern: What it is a plan for.
        others: Placements to compare, each with its plan or why there is none.
    """
    problem = plan.problem
    heads = {member for group in plan.groups for member in group.members}
    sizes = f"head_dim {problem.head_dim}"
    if problem.value_head_dim != problem.head_dim:
        sizes += f", of values {problem.value_head_dim}"
    layers = _plural(len({layer for layer, _ in heads}), "layer")
    kv_heads = _plural(len({head for _, head in heads}), "key/value head")
    lines = [
        f"{pattern.name or 'pattern'}: {plan.shards.q_len:,} tokens on {_shards(plan.shards)}",
        f"{layers} × {kv_heads}, {sizes}, {problem.dtype}: a key and its value take "
        f"{plan.key_bytes:,} bytes",
    ]
    everyone = [member for group in plan.groups for member in group.members]
    for group in plan.groups[:MOST_GROUPS]:
        who = members_text(everyone, group.members)
        lines += ["", f"{who}: {_KINDS[group.kind]}", *_needs(group), *_ranks(group)]
    if len(plan.groups) > MOST_GROUPS:
        rest = len(plan.groups) - MOST_GROUPS
        lines += ["", f"{rest} more groups of heads are printed when --layer or --json asks."]
    lines += ["", *_totals([(plan.shards.placement, plan), *others])]
    return "\n".join(lines) + "\n"


def _plural(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _shards(shards: Shards) -> str:
    text = _plural(shards.ranks, "rank")
    match shards.placement:
        case "contiguous":
            return f"{text}, contiguous shards of {-(-shards.q_len // shards.ranks):,}"
        case "zigzag":
            chunk = -(-shards.q_len // (2 * shards.ranks))
            return f"{text}, in zigzag: chunks of {chunk:,}, one from each end"
    return f"{text}, in stripes of {shards.stripe:,}"


def _needs(group: ShardGroup) -> Iterator[str]:
    line = live_text(group.needs)
    if len(line) <= 80:
        yield f"  rank reads keys  {line}"
    else:
        yield "  rank reads keys"
        yield from (f"    {line}" for line in layout(group.needs))


def _ranks(group: ShardGroup) -> Iterator[str]:
    rows = [("rank", "tokens", "reads of its own", "fetches", "from")]
    for plan in group.ranks:
        rows.append(
            (
                str(plan.rank),
                f"{plan.tokens:,}",
                f"{plan.local:,}",
                f"{plan.received:,}",
                _sources(plan),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(row[:4], widths, strict=True)]
        yield ("  " + "  ".join([*cells, row[4]])).rstrip()


def _sources(plan: RankPlan) -> str:
    shown = [
        f"{transfer.source}: {runs_text(transfer.runs)}"
        for transfer in plan.transfers[:MOST_SOURCES]
    ]
    more = len(plan.transfers) - MOST_SOURCES
    return "; ".join(shown) + (f"; and {more} more ranks" if more > 0 else "")


def runs_text(runs: Sequence[Run]) -> str:
    """Positions in words: `0–3, 4,097–8,191`, `128–255 every 1,024 to 8,447`."""
    shown = []
    for run in runs[:MOST_RUNS]:
        end = run.start + run.length - 1
        text = f"{run.start:,}–{end:,}" if run.length > 1 else f"{run.start:,}"
        if run.count > 1:
            text += f" every {run.period:,} to {run.last:,}"
        shown.append(text)
    if len(runs) > MOST_RUNS:
        shown.append("…")
    return ", ".join(shown)


def _totals(plans: Sequence[tuple[str, ShardPlan | str]]) -> Iterator[str]:
    rows = [("a forward pass", "most bytes fetched", "of all-gather", "busiest over mean rank")]
    for name, plan in plans:
        if isinstance(plan, str):
            rows.append((name, "not known", "", ""))
            continue
        most, all_of_them = max(plan.received_bytes), max(plan.all_gather_bytes)
        share = percent(most / all_of_them) if all_of_them else "–"
        work = "not known" if plan.imbalance is None else f"{plan.imbalance:.3f}"
        rows.append((name, f"{most:,}", share, work))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()
