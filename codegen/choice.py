"""The passes of a pattern: of the ways to split it, the one with the least counted work.

Every way is lowered and its tiles are counted at a reference length, so the choice depends on the
pattern and the tile, not on the call: a new length never compiles another kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from patterncc.codegen.classes import row_classes
from patterncc.codegen.counted_call import reference_numbers
from patterncc.codegen.decompose import Part, decompositions
from patterncc.codegen.ir import DENSE, BlockProgram, Passes, Patches, Tiling
from patterncc.codegen.listing import decides_runs, run_length
from patterncc.codegen.lower import initial_part, specialise, with_transposed
from patterncc.codegen.passes import run_passes
from patterncc.codegen.patch_choice import no_patches, patch_choices
from patterncc.codegen.patches import patch_program
from patterncc.codegen.raster import rasters
from patterncc.codegen.schedule import tile_counts
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import Predicate
from patterncc.dsl.pattern import Pattern

TilingChoice: TypeAlias = Literal["auto", "dense", "strided"]
CHOICES: tuple[TilingChoice, ...] = ("auto", "dense", "strided")

PASS_COST = 2.0  # tiles that merging a row tile of a further pass into the result is worth
PARTIAL_COST = 1.2  # of a full tile
GATHERED_COST = 1.9  # of a full tile of consecutive keys (docs/kernels.md, gathered keys)
PATCH_COST = 1.2
"""Of a tile of consecutive rows and keys, where passing tiles are boxes that descriptors load, and
of three axes or more, loaded by pointers (docs/kernels.md, patches)."""
POINTER_PATCH_COST = 1.4
LISTED_SHARE = 0.1
"""Of what a table may list, which is not known before a call: of tiles, or of the runs of keys that
it decides one by one. Such runs are taken to lie apart, so that all tiles hold some."""
_CLASSES_COUNTED = 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute a pattern.

    Attributes:
        parts: Its parts, in the order of the passes; none of patches that there cannot be.
        initial: Their programs before all passes over the block IR, the forward direction alone;
            empty where one has no lowering.
        passes: Their programs after them.
        cost: Of a call at the reference length, in full tiles; infinite where there is no lowering.
        reason: Why there is none.
    """

    parts: tuple[Part, ...]
    initial: Passes
    passes: Passes
    cost: float
    reason: str = ""


def lower_passes(
    pattern: Pattern,
    block_q: int,
    block_k: int,
    *,
    sizes: Mapping[str, int] | None = None,
    within: bool = False,
    transposed: bool = True,
    tiling: TilingChoice = "auto",
    gather: bool = True,
    patches: bool = False,
    check: bool = False,
) -> Passes:
    """The programs that together compute a pattern, over disjoint pairs.

    Args:
        pattern: What to lower.
        block_q: Rows of a query tile.
        block_k: Keys of a key tile.
        sizes: `heads`, `kv_heads`, `layers`, as in `lower`.
        within: As in `lower`.
        transposed: As in `lower`.
        tiling: `dense` for the positions as they are, `strided` to take all terms with a stride in
            their own variables, `auto` for what visits fewest tiles.
        gather: Whether key tiles may be gathered, which not all executors do. Programs with the
            transposed direction never are: kernels that loop in it gather nothing.
        patches: Whether tiles may be patches of a raster, which not all executors visit.
        check: Whether to verify each program at each step.

    Raises:
        UnsupportedError: For a term that has no exact lowering yet.
        ConfigError: `tiling` is no such choice, or `strided` of a pattern without strides.
    """
    found = candidates(
        pattern,
        block_q,
        block_k,
        sizes=sizes,
        within=within,
        tiling=tiling,
        gather=gather and not transposed,
        patches=patches,
        check=check,
    )
    passes = min(found, key=lambda candidate: candidate.cost).passes
    # After the choice, which looks at the forward direction alone.
    return tuple(with_transposed(each, check=check) for each in passes) if transposed else passes


def candidates(
    pattern: Pattern,
    block_q: int,
    block_k: int,
    *,
    sizes: Mapping[str, int] | None = None,
    within: bool = False,
    tiling: TilingChoice = "auto",
    gather: bool = True,
    patches: bool = False,
    check: bool = False,
) -> tuple[Candidate, ...]:
    """The ways to compute a pattern that a choice of tiling leaves, with their counted costs.

    Their programs are those of the forward direction. Arguments and errors as in `lower_passes`.
    """
    if tiling not in CHOICES:
        raise ConfigError(f"there is no tiling {tiling!r}", CHOICES)

    gather = gather and tiling == "auto"

    def runs(term: Predicate) -> int | None:
        return run_length(term, block_q, block_k) if gather else None

    body = specialise(pattern.body, sizes or {})
    ways = list(decompositions(body, runs))
    in_patches: list[Candidate] = []
    if patches and tiling == "auto":
        in_patches = list(_in_patches(pattern, body, block_q, block_k, sizes, within, check))
    if tiling == "dense":
        ways = ways[:1]
    elif tiling == "strided":
        if len(ways) < 2:
            raise ConfigError("this pattern has no term with a stride", ("auto", "dense"))
        ways = ways[1:2]
    found: list[Candidate] = []
    refusal: UnsupportedError | None = None
    for parts in ways:
        try:
            initial = tuple(
                initial_part(
                    pattern,
                    part.body,
                    block_q,
                    block_k,
                    within=within,
                    tiling=part.tiling,
                    transposed=False,
                    run=part.run,
                )
                for part in parts
            )
        except UnsupportedError as error:
            refusal = refusal or error
            found.append(Candidate(parts, (), (), float("inf"), error.message))
            continue
        passes = tuple(run_passes(program, check=check) for program in initial)
        cost = 0.0
        if len(ways) > 1 or in_patches:
            cost = counted_work(pattern, passes, sizes, gather=gather).cost()
        found.append(Candidate(parts, initial, passes, cost))
    if in_patches:
        found.append(min(in_patches, key=lambda candidate: candidate.cost))
    if refusal is not None and not any(candidate.passes for candidate in found):
        raise refusal
    return tuple(found)


def _in_patches(
    pattern: Pattern,
    body: Predicate,
    block_q: int,
    block_k: int,
    sizes: Mapping[str, int] | None,
    within: bool,
    check: bool,
) -> Iterator[Candidate]:
    """The ways to compute a mask in patches, one for each raster that it may be about; why there is
    none of one that is about some."""
    reason = no_patches(block_q, block_k, within=within)
    if reason:
        if rasters(body):
            yield Candidate((), (), (), float("inf"), reason)
        return
    env = reference_numbers(pattern, sizes)
    for each in patch_choices(body, block_q, block_k, env):
        tile = block_q, block_k
        program = patch_program(
            pattern.structure, body, each.raster, each.patches, tile, fills=each.fills
        )
        passes = (run_passes(program, check=check),)
        cost = counted_work(pattern, passes, sizes).cost()
        yield Candidate((Part(body, patches=each.patches),), (program,), passes, cost)


@dataclass(frozen=True, slots=True)
class Work:
    """What one head does in a call at the reference length, in tiles.

    Attributes:
        full: Tiles without a mask.
        partial: Tiles with one.
        merges: Row tiles whose result is merged with another pass's.
    """

    full: float
    partial: float
    merges: float

    def cost(self, tile: float = 1.0) -> float:
        """Partial tiles and merges weigh more than their area; `tile` is what a full one takes."""
        return tile * (self.full + PARTIAL_COST * self.partial) + PASS_COST * self.merges


def counted_work(
    pattern: Pattern,
    passes: Passes,
    sizes: Mapping[str, int] | None = None,
    *,
    gather: bool = False,
    documents: int = 4,
) -> Work:
    """Counts the tiles of a call at the reference length.

    Args:
        pattern: What was lowered.
        passes: Its programs.
        sizes: As in `lower_passes`.
        gather: Whether they are compared with gathered ones.
        documents: How many documents of one length are taken to be packed.
    """
    env = reference_numbers(pattern, sizes, documents)
    full = partial = merges = 0.0
    for program in passes:
        step = program.tiling.q_step
        counted = [
            part
            for part in row_classes(program, env)
            if part.first_row % max(step // _CLASSES_COUNTED, 1) == 0
        ]
        each = _listed_share(program, gather) * step / len(counted)
        if program.gathered > 1:
            each *= GATHERED_COST
        if program.patches is not None:
            each *= PATCH_COST if len(program.patches.sizes) == 1 else POINTER_PATCH_COST
        for part in counted:
            counts = tile_counts(replace(program, listed=()), part.env)
            full += each * float(counts[0].sum())
            partial += each * float(counts[1].sum())
            merges += (len(passes) > 1) * len(counts[0]) * step / len(counted)
    return Work(full, partial, merges)


def _listed_share(program: BlockProgram, gather: bool) -> float:
    """The share of its tiles, or of its runs of keys, that a program is taken to visit. Where runs
    could be gathered, tiles of consecutive keys are not expected to be without any."""
    if not program.listed:
        return 1.0
    if gather and program.gathered == 1:
        apart = (any(map(decides_runs, clause)) for clause in program.listed)
        return 1.0 if all(apart) else LISTED_SHARE
    return LISTED_SHARE


def tiling_names(passes: Passes) -> str:
    """The variables of each pass in a few words: `dense + residue 8`."""
    return " + ".join(map(pass_name, passes))


def pass_name(program: BlockProgram) -> str:
    """The variables of a pass, or how its keys are gathered, in a few words."""
    run = program.block_k if program.gathered > 1 else None
    return tiling_name(program.tiling, run, program.patches)


def tiling_name(tiling: Tiling, run: int | None = None, patches: Patches | None = None) -> str:
    """Variables in a few words: `dense`, `residue 8` (rows and keys), `key stride 4`; `gathered
    keys` or `gathered runs of 32` where key tiles are gathered from runs of `run` keys; `patches of
    8x16 queries, 8x8 keys` where tiles are such."""
    if patches is not None:
        query, key = ("x".join(map(str, each)) for each in (patches.query, patches.passing_keys))
        return f"patches of {query} queries, {key} keys"
    if run is not None:
        return "gathered keys" if run == 1 else f"gathered runs of {run}"
    if tiling == DENSE:
        return "dense"
    if tiling.q_step == tiling.k_step:
        return f"residue {tiling.q_step}"
    if tiling.q_step == 1:
        return f"key stride {tiling.k_step}"
    return f"rows {tiling.q_step} apart, keys {tiling.k_step} apart"
