"""What runs calls of a pattern on GPUs: planned once and kept.

Holds no tensor; imports torch and triton where a launcher is asked for.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.emitter_choice import counted_number
from patterncc.codegen.gpu.signature import forget_all
from patterncc.dsl.score.terms import terms_of
from patterncc.programs import (
    Alternatives,
    emitter_choice,
    may_visit_patches,
    starting_width,
)
from patterncc.settings import kernel_folder, settings
from patterncc.signatures import resolve
from patterncc.tuned import config_for, subject_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterncc.codegen.gpu.backward import Backward
    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.forward import Forward
    from patterncc.codegen.gpu.launches import Call
    from patterncc.codegen.gpu.pass_plan import Lowered, Special, Tuned
    from patterncc.codegen.ir import Passes

LAUNCHERS_KEPT = 256


@functools.lru_cache(maxsize=LAUNCHERS_KEPT)
def launcher(
    structure: str,
    sizes: tuple[tuple[str, int], ...],
    score: str = "score",
    isolate: bool | None = None,
) -> Forward:
    """What runs a structure on GPUs, with score terms of a canonical text; kept for those used
    last.

    Args:
        structure: Canonical text.
        sizes: What the pattern divides by, by name.
        score: Canonical text of the score terms.
        isolate: Must numbers that are not finite reach only rows that see them? None: where that
            takes no launch.

    Raises:
        UnsupportedError: Triton is missing.
    """
    from patterncc.codegen.gpu.forward import Forward  # here, because it loads triton and torch

    patches = may_visit_patches(structure, sizes, terms_of(score))

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
        _lowering(structure, sizes, transposed=False, patches=patches),
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
    isolate: bool | None = None,
) -> Backward:
    """What runs the gradients of a structure on GPUs, with score terms of a canonical text; kept
    for those used last.

    Args:
        structure: Canonical text.
        sizes: What the pattern divides by, by name.
        score: Canonical text of the score terms.
        deterministic: Must repeated calls give the same bits?
        isolate: Must numbers that are not finite reach only rows and keys that see them? None is
            as False.

    Raises:
        UnsupportedError: Triton is missing.
    """
    from patterncc.codegen.gpu.backward import Backward  # here, because it loads triton and torch
    from patterncc.codegen.gpu.backward_plan import TunedGradients

    patches = may_visit_patches(structure, sizes, terms_of(score))
    tuned = TunedGradients(
        tuned_for(structure, "grad_query"), tuned_for(structure, "grad_key_value")
    )
    return Backward(
        _lowering(structure, sizes, transposed=True, patches=patches),
        lower_rows=_lowering(structure, sizes, transposed=False, patches=patches),
        folder=kernel_folder(),
        tuned=tuned,
        terms=terms_of(score),
        isolates=isolate,
        deterministic=deterministic,
        one_pass=settings().one_pass,
    )


def _lowering(
    structure: str, sizes: tuple[tuple[str, int], ...], *, transposed: bool, patches: bool
) -> Lowered:
    """Gives the alternatives of a structure for a tile shape; arguments as of `Alternatives`."""

    def lowered(block_q: int, block_k: int) -> Sequence[Passes]:
        arguments = (structure, block_q, block_k, sizes)
        return Alternatives(*arguments, transposed=transposed, patches=patches)

    return lowered


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
