"""Gradients of one call, ready for candidates: the kernels of one phase alone, as a backward
launches them.

What all gradients need of each row is computed beforehand and not timed with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from patterncc.autotune.job import Job
from patterncc.autotune.oracle import ForwardOracle, GradientOracle, Run
from patterncc.autotune.phase_launches import planned
from patterncc.autotune.space import phase_named
from patterncc.autotune.tensors import narrow, random_like_output, random_tensors
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.launch import multiprocessors_of, target_of
from patterncc.codegen.gpu.steps import bind_all, named_operands, run
from patterncc.dsl.errors import TuningError

RESULTS: Mapping[str, tuple[str, ...]] = {
    "grad_query": ("grad_query",),
    "grad_key_value": ("grad_key", "grad_value"),
}
"""What a phase computes, by its name."""


def gradient_bench(
    job: Job, phase: str, device: torch.device, folder: Path | None
) -> tuple[Callable[[KernelConfig], Run], GradientOracle, Mapping[str, Tensor]]:
    """What makes configs of a gradient's kernels ready, what judges them, and the input.

    Args:
        job: The call.
        phase: Name of a phase of `RESULTS`.
        device: A GPU, or a CPU on which kernels are interpreted.
        folder: Where generated sources are written; the user's cache by default.

    Raises:
        TuningError: The forward, from whose output gradients start, is wrong.
    """
    tensors = random_tensors(job, device)
    device = tensors["query"].device  # with its number
    tables = {name: narrow(tensors[name]) for name in job.tables}
    tensors["out"], tensors["lse"] = _forward(job, tensors, tables, folder)
    tensors["grad_out"] = random_like_output(job, device)
    oracle = GradientOracle(job, tensors, RESULTS[phase])
    target, multiprocessors = target_of(device), multiprocessors_of(device)

    def ready(config: KernelConfig) -> Run:
        launches = planned(job, phase_named(phase), target, config, multiprocessors=multiprocessors)
        first, *own = bind_all(launches, tables, device, folder)
        operands = {**tensors, **named_operands(tables)}
        checked_operands = {**operands, "grad_out": oracle.checked_grad_out}
        for each in (operands, checked_operands):
            each["delta"] = torch.empty_like(tensors["lse"])
            run([first], each, device)

        def run_own(*, checked: bool = False) -> tuple[Tensor, ...]:
            given = checked_operands if checked else operands
            for name in RESULTS[phase]:
                given[name] = torch.empty_like(tensors[name.removeprefix("grad_")])
                given[f"{name}_state"] = given[name]  # unless a buffer is planned for it
            run(own, given, device)
            return tuple(given[name] for name in RESULTS[phase])

        return run_own

    return ready, oracle, tensors


def _forward(
    job: Job, tensors: Mapping[str, Tensor], tables: Mapping[str, Tensor], folder: Path | None
) -> tuple[Tensor, Tensor]:
    """Output and lse of the call, which are right.

    Raises:
        TuningError: They are not.
    """
    forward = Forward(job.alternatives, folder=folder)
    query, key, value = (tensors[name] for name in ("query", "key", "value"))

    def attend(*, checked: bool = False) -> tuple[Tensor, ...]:
        return forward(query, key, value, env=job.env, scale=job.scale, tables=tables)

    _, wrong = ForwardOracle(job, tensors).judge(attend)
    if wrong:
        raise TuningError(f"gradients need a forward that is right: {wrong}")
    out, lse = attend()
    return out, lse
