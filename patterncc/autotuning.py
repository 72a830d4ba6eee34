"""Tuning from Python: the call at hand, now, because it was asked for.

`Attention.tune` asks for it, and `compile(..., autotune=True)` at the first call of each kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patterncc import launchers, prepared, programs, settings, tuned
from patterncc.autotune.device import describe
from patterncc.autotune.entries import Entry
from patterncc.autotune.job import Job
from patterncc.autotune.key import Device, Subject, key_of
from patterncc.autotune.options import Options
from patterncc.autotune.space import PHASES, Phase, phase_named
from patterncc.autotune.tuning import Tuner
from patterncc.codegen.dtypes import DTYPE_NAMES
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import ArgumentError
from patterncc.parameters import as_array, bind
from patterncc.ranks import agreed

if TYPE_CHECKING:
    from patterncc.signatures import Signature

_settled: set[tuple[Subject, str]] = set()
"""What `ensure` has looked after in this process."""


def job_of_tensors(
    signature: Signature,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    q_offset: int | None = None,
    layer: int = 0,
    layers: int | None = None,
    values: Mapping[str, object],
) -> Job:
    """The job of a call; arguments as of `ops.attend`.

    Raises:
        ArgumentError: One is wrong, or there is nothing to attend to.
        UnsupportedError: The dtype has no kernel.
    """
    numbers, tables = bind(signature, values)
    given = (signature.structure, tables, numbers, None, q_offset, layer, layers)
    call = prepared.prepare(query, key, value, prepared.Options(*given))
    if query.numel() == 0 or key.numel() == 0:
        raise ArgumentError("a call without rows or keys has nothing to tune")
    batch, heads, q_len, head_dim = query.shape
    kv_heads, kv_len, value_head_dim = value.shape[1:]
    dtype = DTYPE_NAMES[query.dtype]
    problem = Problem(dtype, head_dim, value_head_dim, heads // kv_heads)
    return Job(
        signature.structure,
        problem,
        batch,
        heads,
        kv_heads,
        q_len,
        kv_len,
        call.env["q_offset"],
        call.env["layer"],
        call.env.get("layers", 1),
        dict(zip(signature.numbers, numbers, strict=True)),
        {n: as_array(t.cpu()) for n, t in zip(signature.tables, tables, strict=True)},
        patches=programs.takes_patches(problem.terms),
    )


def phases_of(names: Sequence[str] | None, device: torch.device) -> tuple[Phase, ...]:
    """The phases of some names; of none given all that the device has something to tune in.

    Raises:
        ConfigError: There is no such phase.
    """
    if names is not None:
        return tuple(map(phase_named, names))
    return tuple(phase for phase in PHASES.values() if phase.cpu or device.type != "cpu")


def tune_job(
    job: Job, phases: Sequence[Phase], device: torch.device, options: Options
) -> dict[str, Entry]:
    """Tunes phases of a call on the device of its tensors, and keeps and uses what it finds. In a
    job of several ranks the first one tunes, and all use what it found.

    Raises:
        TuningError: No config worked, or processes cannot measure here.
        UnsupportedError: The call cannot be run there.
        ConfigError: A phase has nothing to tune there.
    """
    found = {}
    for phase in phases:
        entry = agreed(lambda phase=phase: _tuned(job, phase, device, options))  # type: ignore[misc]
        _use(entry)
        found[phase.name] = entry
    return found


def ensure(job: Job, phases: Sequence[Phase], device: torch.device) -> None:
    """Tunes the phases of a call that were not tuned for the very key, once in a process.

    Raises:
        As `tune_job`.
    """
    here = describe(str(device))
    for phase in phases:
        subject = job.subject(phase.name).bucketed
        if (subject, here.target) in _settled:
            continue
        _use(agreed(lambda phase=phase: _known_or_tuned(job, phase, here, device)))  # type: ignore[misc]
        _settled.add((subject, here.target))


def _known_or_tuned(job: Job, phase: Phase, here: Device, device: torch.device) -> Entry:
    found = tuned.store().lookup(key_of(job.subject(phase.name), here))
    if found.entry is not None and found.exact:
        return found.entry
    return _tuned(job, phase, device, Options(folder=settings.kernel_folder()))


def _tuned(job: Job, phase: Phase, device: torch.device, options: Options) -> Entry:
    store = tuned.store()
    with Tuner(str(device), store, options=options, written_by=tuned.WRITTEN_BY) as tuner:
        return tuner.tune(job, phase).entry


def _use(entry: Entry) -> None:
    """Lets calls of this process take an entry from now on."""
    store = tuned.store()
    if store.lookup(entry.key).entry != entry:
        store.give([(entry, "user")])
    tuned.forget()
    launchers.forget_plans()
