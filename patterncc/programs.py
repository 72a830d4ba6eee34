"""The block programs of a pattern, each lowered once and kept, and what is chosen by them: patches
of a raster, the width of key tiles, the emitter.

Holds no tensor and imports no torch; what a step means is in `codegen`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import visits_patches
from patterncc.codegen.gpu.emitter_choice import EmitterChoice, choose_emitter, counted_pattern
from patterncc.codegen.key_width import key_width
from patterncc.codegen.lower import first_row_step, lower, with_transposed
from patterncc.codegen.patch_choice import is_about_a_raster, with_numbers_of_call
from patterncc.settings import settings
from patterncc.signatures import PATTERNS_KEPT, resolve

if TYPE_CHECKING:
    from patterncc.codegen.gpu.config import Emitter
    from patterncc.codegen.ir import BlockProgram, Passes
    from patterncc.codegen.problem import Problem
    from patterncc.dsl.score.terms import ScoreTerms

PROGRAMS_KEPT = 1024  # one for each tile shape, values of dividing sizes, and rows within or not


def takes_patches(terms: ScoreTerms) -> bool:
    """May tiles of kernels on GPUs be patches of a raster? Those of kernels with score terms may
    not."""
    return terms.plain


@functools.lru_cache(maxsize=PROGRAMS_KEPT)
def counted_text(
    structure: str, sizes: tuple[tuple[str, int], ...], numbers: tuple[int, ...]
) -> str:
    """The text that calls of a structure are planned by: with their numbers as run-time defaults if
    the choice of tiles reads these (`with_numbers_of_call`), else the structure itself.

    Args:
        structure: Canonical text without run-time defaults.
        sizes: Values of the sizes that it divides by.
        numbers: The run-time numbers of the calls, in name order.
    """
    resolved = resolve(structure)
    named = dict(zip(resolved.numbers, numbers, strict=True))
    counted = with_numbers_of_call(resolved.pattern, dict(sizes), named)
    return structure if counted is resolved.pattern else counted.text


@functools.lru_cache(maxsize=PATTERNS_KEPT)
def _is_on_raster(structure: str, sizes: tuple[tuple[str, int], ...]) -> bool:
    return is_about_a_raster(resolve(structure).pattern, dict(sizes))


@functools.lru_cache(maxsize=PATTERNS_KEPT)
def first_row_step_of(structure: str, sizes: tuple[tuple[str, int], ...]) -> int:
    """Of what number the position of a call's first row must be a multiple for programs `within`.

    Arguments and errors as in `passes`.
    """
    return first_row_step(resolve(structure).pattern, dict(sizes))


def may_visit_patches(
    structure: str, sizes: tuple[tuple[str, int], ...], terms: ScoreTerms
) -> bool:
    """May tiles of a structure's kernels on GPUs be patches of a raster? Others are not lowered for
    patches and then again without.

    Arguments as in `passes`.
    """
    return takes_patches(terms) and _is_on_raster(structure, sizes)


@functools.lru_cache(maxsize=PROGRAMS_KEPT)
def passes(
    structure: str,
    block_q: int,
    block_k: int,
    sizes: tuple[tuple[str, int], ...],
    within: bool,
    transposed: bool = False,
    gather: bool = False,
    patches: bool = False,
) -> Passes:
    """The programs of a structure; kept for those used last.

    Args:
        structure: Canonical text; run-time defaults are what tiles are counted with.
        block_q: Rows of a query tile.
        block_k: Keys of a key tile.
        sizes: Values of the sizes that it divides by.
        within: Whether the rows of the calls end within the keys, and begin at a multiple of
            `first_row_step_of`.
        transposed: Whether they have the transposed direction, which kernels for gradients loop in.
        gather: Whether key tiles may be gathered, which the forward kernels on GPUs take.
        patches: Whether tiles may be patches of a raster, which kernels on GPUs without score terms
            take.

    Raises:
        UnsupportedError: For a term that has no lowering.
    """
    check = settings().verify
    if transposed:  # besides the forward direction, which a call has found before
        both = (structure, block_q, block_k, sizes, within, False)
        forward = passes(*both, gather=True, patches=patches)
        if any(program.gathered > 1 for program in forward):
            forward = passes(*both, gather=False, patches=patches)
        return tuple(with_transposed(program, check=check) for program in forward)
    return lower_passes(
        resolve(structure).pattern,
        block_q,
        block_k,
        sizes=dict(sizes),
        within=within,
        transposed=False,
        gather=gather,
        patches=patches,
        check=check,
    )


@functools.lru_cache(maxsize=PROGRAMS_KEPT)
def starting_width(
    structure: str,
    block_q: int,
    block_k: int,
    sizes: tuple[tuple[str, int], ...],
    patches: bool,
) -> int:
    """How many keys the tiles of a default config have, at most `block_k`.

    Arguments and errors as in `passes`.
    """

    def lowered(width: int) -> Passes:
        # In the words of `Alternatives`, which the cache goes by.
        return passes(structure, block_q, width, sizes, True, False, gather=True, patches=patches)

    return key_width(resolve(structure).pattern, lowered, block_k, dict(sizes))


@functools.lru_cache(maxsize=PROGRAMS_KEPT)
def program(
    structure: str, block_q: int, block_k: int, sizes: tuple[tuple[str, int], ...], within: bool
) -> BlockProgram:
    """The one program of a structure in the positions of the call, its forward direction.

    Arguments and errors as in `passes`.
    """
    return lower(
        resolve(structure).pattern,
        block_q,
        block_k,
        sizes=dict(sizes),
        within=within,
        transposed=False,
        check=settings().verify,
    )


class Alternatives(Sequence["Passes"]):
    """The passes of a structure for one tile shape, lowered when they are looked at: for rows
    within the keys, in patches of a raster where that may be and then in consecutive tiles, which
    all emitters visit; then for any rows.
    """

    def __init__(self, *arguments: Any, transposed: bool, patches: bool) -> None:
        self._arguments = arguments
        self._transposed = transposed
        self._kinds = ((True, True),) * patches + ((True, False), (False, False))

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, index: Any) -> Any:
        within, patches = self._kinds[index]
        gather = not self._transposed
        return passes(*self._arguments, within, self._transposed, gather=gather, patches=patches)


@functools.lru_cache(maxsize=PROGRAMS_KEPT)
def emitter_choice(
    structure: str,
    problem: Problem,
    target: str,
    sizes: tuple[tuple[str, int], ...],
    numbers: tuple[int, ...] = (),
) -> EmitterChoice:
    """What writes the forward kernels of untuned calls on a target, and why.

    Args:
        structure: As in `passes`.
        problem: The shape class.
        target: As in `check_config`.
        sizes: As in `passes`.
        numbers: The run-time numbers of the calls in name order, each a `counted_number`; none
            where the structure has them as defaults.

    Raises:
        UnsupportedError: As in `passes`.
    """
    in_patches = may_visit_patches(structure, sizes, problem.terms)

    def lowered(block_q: int, block_k: int, emitter: Emitter) -> Passes:
        patches = in_patches and visits_patches(emitter)
        return passes(structure, block_q, block_k, sizes, True, False, gather=True, patches=patches)

    resolved = resolve(structure)
    named = dict(zip(resolved.numbers, numbers, strict=False))
    pattern = counted_pattern(resolved.pattern, dict(sizes), named)
    return choose_emitter(pattern, problem, target, lowered, dict(sizes))
