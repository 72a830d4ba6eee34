"""What was tuned, where calls and commands look for it.

A process keeps the answer to a question that it asked once: a call never changes its kernel because
another process has tuned something meanwhile. Loads no torch; calls have loaded it before.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from patterncc import __version__
from patterncc.autotune.key import BY_HEAD, GROWING, Device, Subject, key_of
from patterncc.autotune.space import FORWARD, GRAD_KEY_VALUE
from patterncc.autotune.store import Found, TunedStore
from patterncc.codegen.gpu.config import INTERPRETER, KernelConfig
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.score.terms import PLAIN
from patterncc.settings import settings

if TYPE_CHECKING:
    from patterncc.autotune.entries import Entry
    from patterncc.codegen.problem import Problem

WRITTEN_BY = f"patterncc {__version__}"
ANSWERS_KEPT = 4096
NEAR = 6.0
"""How far a neighbour may be for a call to run with its config; `key.distance` says what counts.
Farther ones only tell a tuning run where to begin: a pattern that is tuned for nothing alike does
better with the default."""


@functools.cache
def store() -> TunedStore:
    """This user's tuned configs and those that came with patterncc."""
    return TunedStore(settings().cache_dir)


def config_for(
    subject: Subject, target: str, *, gluon: KernelConfig | None = None
) -> KernelConfig | None:
    """The config that was tuned for a phase of a call, or for one near enough; None where there is
    none, or the settings want none.

    Args:
        subject: The phase and the call.
        target: What it runs on: `cpu`, or as in `codegen.gpu.config.check_config`.
        gluon: The config of the call's Gluon kernels, where an untuned call has these.
    """
    if not settings().tuned or target == INTERPRETER or subject.problem.terms != PLAIN:
        return None
    if min(subject.q_len, subject.kv_len) <= 0:
        return None
    return _config(subject.bucketed, target, gluon)


def subject_of(
    structure: str, problem: Problem, phase: str, env: Mapping[str, int], names: tuple[str, ...]
) -> Subject:
    """A phase of a call.

    Args:
        structure: Canonical text of the pattern without run-time defaults.
        problem: Shape class.
        phase: Name of a phase.
        env: `q_len`, `kv_len`, `heads`, `kv_heads`, perhaps `layers`, and the run-time numbers.
        names: Of the run-time numbers, in order.
    """
    return Subject(
        structure,
        problem,
        phase,
        tuple((name, env[name]) for name in names),
        env["q_len"],
        env["kv_len"],
        env["heads"],
        env["kv_heads"],
        env.get("layers", 1),
    )


@functools.lru_cache(maxsize=ANSWERS_KEPT)
def _config(subject: Subject, target: str, gluon: KernelConfig | None) -> KernelConfig | None:
    problem = subject.problem
    family = (subject.phase, target, problem.dtype, problem.head_dim, problem.value_head_dim)
    if not store().has_family(family):
        return None
    device = _device_here(target)
    if device.target != target:
        return None
    found = lookup(subject, device)
    return None if found is None else config_of(found, gluon)


def lookup(subject: Subject, device: Device) -> Found | None:
    """What the store says of a phase of a call; None for a pattern that has no lowering, which the
    call itself will say."""
    try:
        key = key_of(subject, device)
    except UnsupportedError:
        return None
    return store().lookup(key)


def config_of(found: Found, gluon: KernelConfig | None = None) -> KernelConfig | None:
    """The config to use: None where `why_not` says why. That of another pattern is taken with the
    order of tiles and heads that this one's rows and heads ask for.

    Args:
        found: What the store has.
        gluon: As of `config_for`.
    """
    if found.entry is None or why_not(found, gluon):
        return None
    config, wanted, known = found.entry.kernel_config, found.wanted, found.entry.key
    if known.pattern == wanted.pattern:
        return config
    growing = GROWING in wanted.pattern_class
    if wanted.phase != GRAD_KEY_VALUE.name:
        config = replace(config, order="reverse" if growing else "forward")
    elif growing != (GROWING in known.pattern_class):
        config = replace(config, order="forward")  # the first keys are seen by most rows
    if BY_HEAD not in wanted.pattern_class:
        config = replace(config, neighbours="tiles")
    return config


def why_not(found: Found, gluon: KernelConfig | None = None) -> str:
    """Why what was found is not used, in words; "" where it is. Arguments as of `config_of`.

    A neighbour tells how much better than *its* default a config is. That says something only where
    the call at hand would start from the same default: counted work may choose another emitter, or
    other tiles of it, for it.
    """
    if found.entry is None:
        return "there is none"
    if found.distance > NEAR:
        return f"too far to be used untried (at most {NEAR:g})"
    if not found.entry.beats_default:
        return "nothing beat the default there"
    if (found.origin == "user" and found.exact) or _starts_alike(found.entry, gluon):
        return ""
    return "the default that it beat is not the one of this call"


def _starts_alike(entry: Entry, gluon: KernelConfig | None) -> bool:
    """Whether what an entry was compared with is what a call starts from."""
    if entry.key.phase != FORWARD.name:
        return True  # the problem alone decides the default
    default = entry.default_config or entry.kernel_config
    if gluon is None:
        # Its mask may be one that takes more registers than Gluon's kernels have.
        return default.emitter == entry.kernel_config.emitter == "triton"
    return _kernel_of(default) == _kernel_of(gluon)


def _kernel_of(config: KernelConfig) -> KernelConfig:
    """A config without what the pattern decides."""
    return replace(config, order="forward", neighbours="tiles")


def forget() -> None:
    """Lets the process look again at what was tuned; its next calls may compile other kernels."""
    _config.cache_clear()


def _device_here(target: str) -> Device:
    """The device that a call to a target runs on: the current one."""
    import torch  # here, because the command line reads the store without it

    from patterncc.autotune.device import describe

    if target == "cpu":
        return describe("cpu")
    return describe(f"cuda:{torch.cuda.current_device()}")
