"""A `Reach` as text for people."""

from collections.abc import Iterator

from patterncc.codegen.facts.reach import Reach
from patterncc.live_text import live_text
from patterncc.notation import layout, percent

MOST_STATES = 24  # layers of which the numbers are printed
MOST_LINES = 12  # of a closed form


def format_reach(reach: Reach, name: str) -> str:
    """The text, without colours.

    Args:
        reach: What to print.
        name: Of the pattern.
    """
    lines = [
        f"{name or 'pattern'}: {plural(reach.q_len, 'token')}, {plural(reach.layers, 'layer')}"
    ]
    lines += ["", *_form(reach)]
    lines += ["", f"what can influence the last position, {reach.q_len - 1:,}", *_states(reach)]
    lines += ["", verdict(reach)]
    if len(set(reach.path)) > 1:
        lines += [f"the earliest of them by {path_text(reach)}"]
    how = {
        "relations": "computed by composing the layers' relations",
        "positions": "computed by looking at every position",
    }
    return "\n".join([*lines, how[reach.method]]) + "\n"


def _form(reach: Reach) -> Iterator[str]:
    if reach.form_layers == 0:
        yield "no closed form was found within the budget"
        return
    whole = reach.form_layers == reach.layers
    through = plural(reach.form_layers, "layer") if whole else f"the top {reach.form_layers} layers"
    yield f"through {through}, token k can influence position q where"
    line = live_text(reach.form)
    lines = [line] if len(line) <= 92 else layout(reach.form)
    if len(lines) > MOST_LINES:
        yield f"  … a closed form of {len(lines)} lines, which --json prints"
    else:
        yield from (f"  {line}" for line in lines)
    if not whole:
        yield "  through more, no closed form was found within the budget"


def _states(reach: Reach) -> Iterator[str]:
    rows = [("input of", "tokens", "of all", "earliest")]
    for state in reach.states[1:]:
        share = percent(state.reached / reach.q_len)
        rows.append((f"layer {state.layer}", f"{state.reached:,}", share, f"{state.earliest:,}"))
    shown = rows
    if len(rows) - 1 > MOST_STATES:
        half = MOST_STATES // 2
        shown = [*rows[: half + 1], ("…", "", "", ""), *rows[-half:]]
    widths = [max(len(row[i]) for row in shown) for i in range(4)]
    for row in shown:
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield ("  " + "  ".join(cells)).rstrip()


def verdict(reach: Reach) -> str:
    """After how many layers every earlier token can influence the last, as a sentence."""
    if reach.enough is not None:
        if reach.enough == 0:
            return "there is no earlier token"
        number = plural(reach.enough, "layer")
        return f"after {number}, and no fewer, every earlier token can influence the last"
    if reach.tried is None:
        return "there are earlier tokens that never influence the last, after any number of layers"
    number = plural(reach.tried, "layer")
    return f"after {number} there are still earlier tokens that cannot influence the last"


def path_text(reach: Reach) -> str:
    """The hops of a path: `layer 11: 65,535 ← 61,440; layer 10: 61,440 ← 57,345`."""
    hops = []
    for number in range(1, len(reach.path)):
        above, below = reach.path[number - 1 : number + 1]
        if above != below:
            hops.append(f"layer {reach.layers - number}: {above:,} ← {below:,}")
    if len(hops) > 6:
        hops = [*hops[:3], "…", *hops[-2:]]
    return "; ".join(hops)


def plural(number: int, what: str) -> str:
    """A number of things: `1 layer`, `12 layers`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
