"""What the cost model expects of a call, as formulas with their numbers: `explain --cost`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from patterncc.autotune.candidates import default_of, model_of
from patterncc.autotune.cost import CpuConstants, resident_programs
from patterncc.autotune.formulas import MEANINGS, Formula, cpu_formulas, gpu_formulas
from patterncc.autotune.job import Job
from patterncc.autotune.key import Device
from patterncc.autotune.space import CPU, Phase, config_values
from patterncc.autotune.words import config_words
from patterncc.codegen.choice import pass_name
from patterncc.codegen.gpu.config import visits_patches
from patterncc.tuned import config_of, lookup, store

_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))


@dataclass(frozen=True, slots=True)
class Cost:
    """What is expected of one call.

    Attributes:
        device: In words.
        phase: Name of the phase.
        config: Values of the phase's knobs.
        tuned: Whether the store has the config; else it is the default.
        calibrated: Whether the constants were fitted on this device; else they are the usual ones.
        passes: By each pass in words, its parts.
    """

    device: str
    phase: str
    config: Mapping[str, Any]
    tuned: bool
    calibrated: bool
    passes: tuple[tuple[str, tuple[Formula, ...]], ...]

    @property
    def seconds(self) -> float:
        """Of the call."""
        return sum(one.seconds for _, formulas in self.passes for one in formulas)

    def lines(self) -> list[str]:
        """As text."""
        origin = "tuned" if self.tuned else "default"
        constants = "calibrated here" if self.calibrated else "usual ones, not calibrated here"
        found = [
            f"{self.phase} on {self.device}, {origin} config: {config_words(self.config)}",
            f"expected: {_time(self.seconds)}; constants: {constants}",
        ]
        symbols: dict[str, float] = {}
        for title, formulas in self.passes:
            if len(self.passes) > 1:
                found.append(f"pass {title}: {_time(sum(one.seconds for one in formulas))}")
            for one in formulas:
                share = one.seconds / self.seconds if self.seconds else 0.0
                head = f"  {one.part:9} {_time(one.seconds):>9} {share:4.0%}  {one.words}"
                found.append(head)
                if one.expression is not None:
                    found.append(f"{'':27}{one.expression}")
                symbols |= one.values
            counts = {name: symbols[name] for name in MEANINGS if name in symbols}
            found += [f"  {n} = {_number(x):>12}  {MEANINGS[n]}" for n, x in counts.items()]
        found.append("constants, per second, in seconds or as shares:")
        fitted = [f"{n} = {_number(x)}" for n, x in symbols.items() if n not in MEANINGS]
        found += [f"  {text}" for text in fitted]
        return found

    def as_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "device": self.device,
            "phase": self.phase,
            "config": dict(self.config),
            "tuned": self.tuned,
            "calibrated": self.calibrated,
            "seconds": self.seconds,
            "passes": [
                {"tiling": title, "parts": [_part(one) for one in formulas]}
                for title, formulas in self.passes
            ],
        }


def cost_of(job: Job, phase: Phase, device: Device) -> Cost:
    """What the model expects of the config that a call would take.

    Args:
        job: The call.
        phase: What is computed.
        device: Where; need not be here.

    Raises:
        UnsupportedError: The pattern has a term that has no lowering, or no kernel there.
        ConfigError: The phase has nothing to configure there.
    """
    found = lookup(job.subject(phase.name), device)
    default = default_of(job, phase, device)
    gluon = default if default.emitter == "gluon" else None
    config = None if found is None else config_of(found, gluon)
    tuned = config is not None
    config = config or default
    model = model_of(job, phase, device, store())
    facts = model.facts(config)
    patches = device.target != CPU and visits_patches(config.emitter)
    programs = job.passes(config.block_q, config.block_k, patches=patches)
    constants, problem = model.constants, job.problem
    passes: list[tuple[str, tuple[Formula, ...]]] = []
    for one, program in zip(facts, programs, strict=True):
        if isinstance(constants, CpuConstants):
            formulas = cpu_formulas(one, config, problem, constants)
        else:
            resident = resident_programs(config, phase, problem, device.target)
            formulas = gpu_formulas(one, config, phase, problem, resident, constants)
        passes.append((pass_name(program), formulas))
    values = config_values(config, phase, device.target)
    calibrated = store().constants(device.name, phase) is not None
    return Cost(device.name, phase.name, values, tuned, calibrated, tuple(passes))


def _part(one: Formula) -> dict[str, Any]:
    text = None if one.expression is None else str(one.expression)
    return {**asdict(one), "expression": text, "values": dict(one.values)}


def _time(seconds: float) -> str:
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return "0 s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"
