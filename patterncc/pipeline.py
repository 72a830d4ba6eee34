"""From text to what a call runs, each step done once and kept.

Holds no tensor and imports no torch; what a step means is in `codegen`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import visits_patches
from patterncc.codegen.gpu.emitter_choice import (
    EmitterChoice,
    choose_emitter,
    counted_number,
    counted_pattern,
)
from patterncc.codegen.gpu.signature import forget_all
from patterncc.codegen.key_width import key_width
from patterncc.codegen.lower import DIVIDING_SIZES, lower, with_transposed
from patterncc.codegen.patch_choice import is_about_a_raster, with_numbers_of_call
from patterncc.dsl import load
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.mask import FloorDiv, Mod, variables, walk
from patterncc.dsl.score.terms import ScoreTerms, terms_of
from patterncc.settings import settings
from patterncc.tuned import config_for, subject_of

if TYPE_CHECKING:
    from patterncc.codegen.gpu.backward import Backward
    from patterncc.codegen.gpu.config import Emitter, KernelConfig
    from patterncc.codegen.gpu.forward import Forward
    from patterncc.codegen.gpu.launches import Call
    from patterncc.codegen.gpu.pass_plan import Special, Tuned
    from patterncc.codegen.ir import BlockProgram, Passes
    from patterncc.codegen.problem import Problem
    from patterncc.dsl.pattern import Pattern

PATTERNS_KEPT = 256  # parsed texts
LAUNCHERS_KEPT = 256
PROGRAMS_KEPT = 1024  # one for each tile shape, values of dividing sizes, and rows within or not


@dataclass(frozen=True, slots=True)
class Signature:
    """What a call of a pattern takes, in the order in which values travel to a kernel (name order).

    Attributes:
        structure: Canonical text without the run-time defaults: the kernel's identity.
        numbers: Names of the run-time numbers.
        defaults: Their values where the call gives none; `None`: it must.
        tables: Names of the tables and segments.
        fixed: Names of the parameters that were fixed when the pattern was compiled.
    """

    structure: str
    numbers: tuple[str, ...]
    defaults: tuple[int | None, ...]
    tables: tuple[str, ...]
    fixed: tuple[str, ...]

    @staticmethod
    def of(pattern: Pattern) -> Signature:
        """The signature of a pattern."""
        return Signature(
            pattern.structure,
            tuple(parameter.name for parameter in pattern.numbers),
            tuple(parameter.value for parameter in pattern.numbers),
            tuple(parameter.name for parameter in pattern.tables),
            tuple(name for name, _ in pattern.fixed),
        )


def read_source(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The text of a source, and its path if it is a file.

    Raises:
        ArgumentError: It is neither a text, a library name nor a path, or the file is not UTF-8.
        OSError: The file cannot be read.
    """
    if isinstance(source, str) and (not source.endswith(".pat") or "\n" in source):
        return source, None
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentError(
            f"`source` is {type(source).__name__}; "
            "it must be a text, a library name, a path or a Pattern"
        )
    path = Path(source)
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except UnicodeDecodeError as error:
        raise ArgumentError(f"`source` is {str(path)!r}, which is not text in UTF-8") from error


def signature_of(source: str | os.PathLike[str]) -> Signature:
    """The signature of a source; texts used lately are parsed only once."""
    return _signature(*read_source(source))


@functools.lru_cache(maxsize=PATTERNS_KEPT)
def _signature(text: str, path: str | None) -> Signature:
    return Signature.of(load(text, file=path))


@dataclass(frozen=True, slots=True)
class Resolved:
    """A structure read back from its text, with what every call asks of it.

    Attributes:
        pattern: What it means.
        numbers: The names of its run-time numbers, in the order in which values travel.
        sizes: Those of `heads`, `kv_heads`, `layers` that it divides by: each value of them is
            another program.
        reads: Coordinates and sizes it reads.
    """

    pattern: Pattern
    numbers: tuple[str, ...]
    sizes: tuple[str, ...]
    reads: frozenset[str]


@functools.lru_cache(maxsize=PATTERNS_KEPT)
def resolve(structure: str) -> Resolved:
    """Reads a structure back from its text; kept for the patterns used last.

    Raises:
        PatternError: It is no pattern.
    """
    pattern = load(structure)
    dividing: set[str] = set()
    for node in walk(pattern.body):
        if isinstance(node, (FloorDiv, Mod)):
            dividing |= variables(node.divisor)
    return Resolved(
        pattern,
        tuple(parameter.name for parameter in pattern.numbers),
        tuple(name for name in DIVIDING_SIZES if name in dividing),
        variables(pattern.body),
    )


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
def _on_raster(structure: str, sizes: tuple[tuple[str, int], ...]) -> bool:
    """Others are not lowered for patches and then again without."""
    return is_about_a_raster(resolve(structure).pattern, dict(sizes))


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
        within: Whether the rows of the calls end within the keys.
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
        # In the words of `_Alternatives`, which the cache goes by.
        return passes(structure, block_q, width, sizes, True, False, gather=True, patches=patches)

    return key_width(resolve(structure).pattern, lowered, block_k, dict(sizes))


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

    in_patches = takes_patches(problem.terms) and _on_raster(structure, sizes)

    def lowered(block_q: int, block_k: int, emitter: Emitter) -> Passes:
        patches = in_patches and visits_patches(emitter)
        return passes(structure, block_q, block_k, sizes, True, False, gather=True, patches=patches)

    resolved = resolve(structure)
    named = dict(zip(resolved.numbers, numbers, strict=False))
    pattern = counted_pattern(resolved.pattern, dict(sizes), named)
    return choose_emitter(pattern, problem, target, lowered, dict(sizes))


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


class _Alternatives(Sequence["Passes"]):
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


@functools.lru_cache(maxsize=LAUNCHERS_KEPT)
def launcher(
    structure: str,
    sizes: tuple[tuple[str, int], ...],
    score: str = "score",
    isolate: bool = False,
) -> Forward:
    """What runs a structure on GPUs, with score terms of a canonical text; kept for those used
    last.

    Args:
        structure: Canonical text.
        sizes: What the pattern divides by, by name.
        score: Canonical text of the score terms.
        isolate: Must numbers that are not finite reach only rows that see them?

    Raises:
        UnsupportedError: Triton is missing.
    """
    from patterncc.codegen.gpu.forward import Forward  # here, because it loads triton and torch

    patches = takes_patches(terms_of(score)) and _on_raster(structure, sizes)

    def lowered(block_q: int, block_k: int) -> Sequence[Passes]:
        arguments = (structure, block_q, block_k, sizes)
        return _Alternatives(*arguments, transposed=False, patches=patches)

    def width(block_q: int, block_k: int) -> int:
        return starting_width(structure, block_q, block_k, sizes, patches)

    def special(call: Call) -> KernelConfig | None:
        resolved = resolve(structure)
        numbers: tuple[int, ...] = ()
        if not resolved.pattern.defaults:
            numbers = tuple(counted_number(call.env[name]) for name in resolved.numbers)
        choice = emitter_choice(structure, call.problem, call.target, sizes, numbers)
        return choice.for_rows(call.q_len).config

    return Forward(
        lowered,
        folder=kernel_folder(),
        tuned=tuned_for(structure, "forward", special),
        key_width=width,
        special=special,
        terms=terms_of(score),
        isolates=isolate,
    )


@functools.lru_cache(maxsize=LAUNCHERS_KEPT)
def backward_launcher(
    structure: str,
    sizes: tuple[tuple[str, int], ...],
    score: str = "score",
    deterministic: bool = True,
    isolate: bool = False,
) -> Backward:
    """What runs the gradients of a structure on GPUs, with score terms of a canonical text; kept
    for those used last.

    Args:
        structure: Canonical text.
        sizes: What the pattern divides by, by name.
        score: Canonical text of the score terms.
        deterministic: Must repeated calls give the same bits?
        isolate: Must numbers that are not finite reach only rows and keys that see them?

    Raises:
        UnsupportedError: Triton is missing.
    """
    from patterncc.codegen.gpu.backward import Backward  # here, because it loads triton and torch
    from patterncc.codegen.gpu.backward_plan import TunedGradients

    patches = takes_patches(terms_of(score)) and _on_raster(structure, sizes)

    def lowered(block_q: int, block_k: int) -> Sequence[Passes]:
        arguments = (structure, block_q, block_k, sizes)
        return _Alternatives(*arguments, transposed=True, patches=patches)

    def of_rows(block_q: int, block_k: int) -> Sequence[Passes]:
        arguments = (structure, block_q, block_k, sizes)
        return _Alternatives(*arguments, transposed=False, patches=patches)

    tuned = TunedGradients(
        tuned_for(structure, "grad_query"), tuned_for(structure, "grad_key_value")
    )
    return Backward(
        lowered,
        lower_rows=of_rows,
        folder=kernel_folder(),
        tuned=tuned,
        terms=terms_of(score),
        isolates=isolate,
        deterministic=deterministic,
    )


def isolates(asked: bool | None) -> bool:
    """Must numbers that are not finite reach only rows and keys that see them? As it was asked
    for, else as the environment has it."""
    return settings().isolate if asked is None else asked


def tuned_for(structure: str, phase: str, special: Special | None = None) -> Tuned:
    """What asks for the config that was tuned for a phase of a call of a structure.

    Args:
        structure: Canonical text.
        phase: Name of the phase.
        special: Gives the config of the kernels that Gluon writes for an untuned call.
    """

    def tuned(call: Call) -> KernelConfig | None:
        resolved = resolve(structure)
        # What a backward is called with has no numbers of heads: its tensors have.
        heads = {"heads": call.heads, "kv_heads": call.heads // call.problem.group}
        env = {**call.env, **heads}
        subject = subject_of(resolved.pattern.structure, call.problem, phase, env, resolved.numbers)
        gluon = None if special is None else special(call)
        return config_for(subject, call.target, gluon=gluon)

    return tuned


def forget_plans() -> None:
    """Lets calls be planned again; kernels that were compiled are kept."""
    launcher.cache_clear()
    backward_launcher.cache_clear()
    forget_all()


def kernel_folder() -> Path:
    """Where generated kernels are written."""
    return settings().cache_dir / "src"


class Counts(NamedTuple):
    """How much this process has compiled so far: what a call that finds everything kept leaves as
    it is."""

    patterns: int
    programs: int


def caches() -> tuple[Any, ...]:
    """The caches of this module; each is bounded."""
    return (
        _signature,
        resolve,
        passes,
        counted_text,
        _on_raster,
        starting_width,
        program,
        launcher,
        backward_launcher,
    )


def cache_counts() -> Counts:
    """The texts that were parsed and the programs that were lowered so far."""
    return Counts(
        _signature.cache_info().misses + resolve.cache_info().misses,
        passes.cache_info().misses + program.cache_info().misses,
    )
