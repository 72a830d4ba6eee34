"""Finds what a pattern is and costs at one call: its parameters, exact counts and loops, by equal
heads. Loads no torch.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc import live
from patterncc.call import Call
from patterncc.codegen import schedule
from patterncc.codegen.choice import Candidate, tiling_name, tiling_names
from patterncc.codegen.classes import row_classes
from patterncc.codegen.facts.counts import Work, count_tiles, work
from patterncc.codegen.facts.pair_counts import count_pairs, pair_program
from patterncc.codegen.gpu.config import Emitter, visits_patches
from patterncc.codegen.gpu.emitter_choice import EmitterChoice, choose_emitter, counted_pattern
from patterncc.codegen.gpu.gluon.reasons import HOPPER
from patterncc.codegen.gpu.one_pass_choice import ONE_PASS, OnePassChoice, choose_one_pass
from patterncc.codegen.ir import BlockProgram, Passes
from patterncc.codegen.lower import lower, with_transposed
from patterncc.codegen.printer import format_clauses
from patterncc.codegen.problem import Problem
from patterncc.dsl.build import all_of, compare, substitute
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import (
    Const,
    Entry,
    Expr,
    K,
    Member,
    Predicate,
    Q,
    Truth,
    Var,
    walk,
)
from patterncc.dsl.pattern import IntType, Pattern, SegmentsType
from patterncc.dsl.printer import expression_text
from patterncc.explanation import Explanation, Group, ParameterNote, PassLoops, Way
from patterncc.live import LiveReport
from patterncc.loops import loops
from patterncc.notation import layout
from patterncc.programs import takes_patches
from patterncc.settings import settings

MOST_ROWS = 1 << 24  # rows and keys up to which each is counted

FIXED = "a divisor, modulus, factor of a position or block size: another value, another kernel"
_OF_A_HEAD = ("head", "kv_head", "layer", "batch", "heads", "layers")
RUN_TIME = "only compared and added: another value runs the same kernel"
TABLE = "read at run time"


def explain(
    call: Call,
    problem: Problem,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    block_q: int = 128,
    block_k: int = 128,
    deterministic: bool = True,
) -> Explanation:
    """Explains a pattern at one call.

    Args:
        call: The pattern and its sizes.
        problem: What operations and bytes are counted for.
        layers: Layers to look at; all of the call if not given.
        heads: Query heads to look at; all of the call if not given.
        block_q: Rows of a query tile.
        block_k: Keys of a key tile.
        deterministic: Must repeated calls give gradients of the same bits?

    Raises:
        ConfigError: There are more than `MOST_ROWS` rows or keys.
        UnsupportedError: The pattern has a term that is not lowered yet.
    """
    for name, length in (("q_len", call.q_len), ("kv_len", call.kv_len)):
        if length > MOST_ROWS:
            raise ConfigError(f"{name} is {length}; rows are counted up to {MOST_ROWS}")
    members = [
        (layer, head)
        for layer in (range(call.layers) if layers is None else layers)
        for head in (range(call.heads) if heads is None else heads)
    ]
    call.require_tables()
    ways = call.candidates(block_q, block_k, patches=takes_patches(problem.terms))
    chosen = min(ways, key=lambda way: way.cost)
    passes = tuple(map(with_transposed, chosen.passes))
    pairs = pair_program(call.pattern, call.sizes, within=call.within)
    # Most heads differ from others in nothing that the mask reads.
    measured: dict[Predicate, _Measured] = {}
    groups: dict[bytes, list[tuple[int, int]]] = {}
    first: dict[bytes, _Measured] = {}
    for layer, head in members:
        env = call.env(head, layer)
        body = _specialised(call.pattern.body, env)
        if body not in measured:
            measured[body] = _measure(passes, pairs, problem, env)
        digest = measured[body].digest
        groups.setdefault(digest, []).append((layer, head))
        first.setdefault(digest, measured[body])
    return replace(
        outline(call, problem, block_q, block_k),
        causal=is_causal(call),
        ways=tuple(_way(way, way is chosen) for way in ways),
        groups=tuple(_group(call, passes, groups[key], first[key]) for key in groups),
        live=_live(call, layers, heads),
        emitter=_emitter(call, problem),
        gradients=_gradients(call, problem, in_turn=deterministic),
    )


def _emitter(call: Call, problem: Problem) -> EmitterChoice:
    def lowered(block_q: int, block_k: int, emitter: Emitter) -> Passes:
        patches = takes_patches(problem.terms) and visits_patches(emitter)
        ways = call.candidates(block_q, block_k, patches=patches)
        return min(ways, key=lambda way: way.cost).passes

    pattern = counted_pattern(call.pattern, call.sizes, call.pattern.defaults)
    choice = choose_emitter(pattern, problem, HOPPER, lowered, call.sizes)
    return choice.for_rows(call.q_len)


def _gradients(call: Call, problem: Problem, *, in_turn: bool) -> OnePassChoice:
    if not settings().one_pass:
        return OnePassChoice(None, ONE_PASS, "PATTERNCC_ONE_PASS=0 asks for two kernels")
    ways = call.candidates(ONE_PASS.block_q, ONE_PASS.block_k)
    passes = tuple(map(with_transposed, min(ways, key=lambda way: way.cost).passes))
    # What tables hold is known to the device alone.
    env = {name: value for name, value in call.env().items() if name not in call.tables}
    problem = replace(problem, group=call.heads // call.kv_heads)
    return choose_one_pass(passes, problem, HOPPER, env, call.heads, in_turn=in_turn)


def _live(
    call: Call, layers: Sequence[int] | None, heads: Sequence[int] | None
) -> LiveReport | str:
    """The live keys at the last row of a call, or why they are not known."""
    share = call.heads // call.kv_heads
    kv_heads = None if heads is None else sorted({head // share for head in heads})
    times = [call.q_offset + call.q_len - 1]
    try:
        return live.report(
            call.pattern, call.sizes, times, layers=layers, kv_heads=kv_heads, batch=call.batch
        )
    except (ConfigError, UnsupportedError) as error:
        return error.message


def outline(call: Call, problem: Problem, block_q: int = 128, block_k: int = 128) -> Explanation:
    """What can be said of a pattern that cannot be lowered: what it means and takes."""
    return Explanation(
        call,
        problem,
        block_q,
        block_k,
        tuple(layout(call.pattern.body)),
        tuple(_notes(call)),
        None,
        (),
        (),
        "it is not lowered",
    )


def is_causal(call: Call) -> bool | None:
    """Whether no row ever sees a later position, whatever the lengths and the run-time numbers;
    `None` where that hangs on a table or is not known.
    """
    later = all_of(call.pattern.body, compare("<", Q, K))
    pattern = Pattern("", call.pattern.parameters, (), later, "", "")
    program = lower(pattern, 1, 1, sizes=call.sizes, transposed=False)
    if not program.forward:
        return True
    return None if program.ignored or pattern.tables else False


# ------------------------------------------------------------------------------------- one head


@dataclass(frozen=True, slots=True)
class _Measured:
    """One head's numbers; the digest stands for the counts of every row of tiles and every row."""

    work: Work
    visible: npt.NDArray[np.int64]
    digest: bytes


def _specialised(body: Predicate, env: dict[str, Any]) -> Predicate:
    """The mask of one head of one layer, with the entries of tables that are its own."""
    numbers: dict[Expr, Expr] = {Var(name): Const(env[name]) for name in _OF_A_HEAD}
    body = substitute(body, numbers)
    entries: dict[Expr, Expr] = {}
    for node in walk(body):
        if isinstance(node, (Entry, Member)) and all(isinstance(at, Const) for at in node.indexes):
            value = int(schedule.evaluate(node, env))
            entries[node] = Const(value) if isinstance(node, Entry) else Truth(bool(value))
    return substitute(body, entries) if entries else body


def _measure(
    passes: Passes, pairs: BlockProgram, problem: Problem, env: dict[str, Any]
) -> _Measured:
    seen = count_pairs(pairs, env)
    digest = hashlib.sha256(seen.rows.tobytes())
    for program in passes:
        for part in row_classes(program, env):
            for counts in schedule.tile_counts(program, part.env):
                digest.update(counts.tobytes())
    return _Measured(work(passes, problem, env, seen), seen.rows, digest.digest())


def _group(
    call: Call, passes: Passes, members: Sequence[tuple[int, int]], measured: _Measured
) -> Group:
    layer, head = members[0]
    env = call.env(head, layer)
    visible = measured.visible
    return Group(
        tuple(members),
        measured.work,
        measured.work.pairs / (call.q_len * call.kv_len),
        (int(visible.min()), float(visible.mean()), int(visible.max())),
        tuple(_ranges(visible == 0)),
        tuple(_pass_loops(program, env) for program in passes),
    )


def _pass_loops(program: BlockProgram, env: dict[str, Any]) -> PassLoops:
    tiling = program.tiling
    counts = count_tiles(program, env)
    first = next(iter(row_classes(program, env)))
    return PassLoops(
        tiling_names((program,)),
        tiling.q_step,
        tiling.k_step,
        program.block_k if program.gathered > 1 else 0,
        counts.visited,
        counts.full,
        format_clauses(program.listed),
        tuple(map(expression_text, program.ignored)),
        tuple(loops(program, first.env, "forward")),
        tuple(loops(program, first.env, "transposed")),
    )


def _way(candidate: Candidate, chosen: bool) -> Way:
    names = " + ".join(tiling_name(part.tiling, part.run, part.patches) for part in candidate.parts)
    names = names or "patches of a raster"
    return Way(names, candidate.cost if candidate.passes else None, chosen, candidate.reason)


def _ranges(flags: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """The half-open ranges where flags are set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        yield int(start), int(end)


def _notes(call: Call) -> Iterator[ParameterNote]:
    for name, value in call.pattern.fixed:
        yield ParameterNote(name, "fixed", value, FIXED)
    for parameter in call.pattern.parameters:
        name, example = parameter.name, call.examples.get(parameter.name, "")
        note = f"; {example}" if example else ""
        match parameter.type:
            case IntType():
                given = parameter.value is not None
                yield ParameterNote(name, "run-time", parameter.value, RUN_TIME + note, given)
            case SegmentsType():
                yield ParameterNote(
                    name,
                    "segments",
                    None,
                    TABLE + _contents(call, name) + note,
                    name in call.tables,
                )
            case _:
                yield ParameterNote(
                    name, "table", None, TABLE + _contents(call, name) + note, name in call.tables
                )


def _contents(call: Call, name: str) -> str:
    """A table in a few words, as the end of a sentence; "" where there is none."""
    table = call.tables.get(name)
    if table is None:
        return ""
    shape = f"[{', '.join(map(str, table.shape))}]"
    if table.dtype == np.bool_:
        return f"; {shape}, {table.mean():.1%} true" if table.size else f"; {shape}"
    if any(p.name == name and isinstance(p.type, SegmentsType) for p in call.pattern.tables):
        return f"; {len(table) - 1} documents"
    return f"; {shape}, {table.min()} … {table.max()}" if table.size else f"; {shape}"
