"""Boxes of tiles as Triton text: loops around a loop (`ir.Repeat`) become one counter, whose
quotients and remainders are the places along the axes of the box."""

from __future__ import annotations

from collections.abc import Iterator

from patterncc.codegen.gpu.bound_source import integer_text
from patterncc.codegen.gpu.scalar_source import ExpressionWriter
from patterncc.codegen.gpu.separate import separate
from patterncc.codegen.ir import Sweep
from patterncc.dsl.mask import TRUE, Const


def box_lines(writer: ExpressionWriter, sweep: Sweep, label: str, before: str) -> Iterator[str]:
    """How long the loop over a box and each one around it are, and the tile that all of them start
    at.

    Args:
        writer: Of the bounds.
        sweep: The box.
        label: Ends the names of its bounds.
        before: The counter at which it starts; empty for 0.
    """
    yield f"first_{label} = {integer_text(writer, sweep.lo)}"
    length = f"tl.maximum({writer.integer(sweep.hi).operand()} - first_{label}, 0)"
    guard = separate(sweep.guard)
    if guard != TRUE:
        length = f"tl.where({writer.predicate(guard)}, {length}, 0)"
    yield f"width_{label} = {length}.to(tl.int32)"
    count = f"width_{label}"
    start = f"first_{label}" if sweep.stride == 1 else f"first_{label} * {sweep.stride}"
    for number, repeat in enumerate(sweep.repeats):
        name = f"{label}_{number}"
        yield f"begin_{name} = {integer_text(writer, repeat.lo)}"
        end = writer.integer(repeat.hi).operand()
        yield f"turns_{name} = tl.maximum({end} - begin_{name}, 0).to(tl.int32)"
        count += f" * turns_{name}"
        start += f" + begin_{name} * {repeat.step}"
    if sweep.phase != Const(0):
        start += f" + {writer.integer(sweep.phase).operand()}"
    yield f"end_{label} = {f'{before} + ' if before else ''}{count}"
    yield f"shift_{label} = ({start}).to(tl.int32)"
    # What a division by nothing gives is never read, but must not be asked for.
    yield f"width_{label} = tl.maximum(width_{label}, 1)"
    for number in range(len(sweep.repeats) - 1):
        yield f"turns_{label}_{number} = tl.maximum(turns_{label}_{number}, 1)"


def box_tile(sweep: Sweep, label: str, before: str) -> str:
    """The tile at counter `step`; arguments as of `box_lines`, whose lines it reads."""
    step = f"(step - {before})" if before else "step"
    inner = f"{step} % width_{label}"
    terms = [f"shift_{label}", inner if sweep.stride == 1 else f"{inner} * {sweep.stride}"]
    turn = f"{step} // width_{label}"
    last = len(sweep.repeats) - 1
    for number, repeat in enumerate(sweep.repeats):
        own = turn if number == last else f"({turn}) % turns_{label}_{number}"
        terms.append(f"({own}) * {repeat.step}")
        turn = f"({turn}) // turns_{label}_{number}"
    return " + ".join(terms)
