"""What is open to a search of one phase of a call: every legal config at first, of those that were
compiled the ones worth running.

Compiling takes longer than measuring, and most configs are never asked for. So the most promising
are compiled before the search begins, and others in batches when it comes to them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from patterncc.autotune.cost import CostModel
from patterncc.autotune.job import Job
from patterncc.autotune.measurement import Measurement
from patterncc.autotune.prune import CompilePool, survivors
from patterncc.autotune.space import Phase
from patterncc.codegen.gpu.config import KernelConfig

_UNSEEN = 1.03


class OpenConfigs:
    """The configs that a search may try. Nothing is compiled for a CPU.

    Args:
        job: The call.
        phase: What is tuned.
        model: Predicts.
        default: The config of untuned calls; it stays open whatever the compiler says of it.
        legal: All configs.
        pool: What compiles; None on a CPU.
        most: How many are compiled at most.
        seconds: That compiling may take, of all together.

    Attributes:
        predicted: Seconds by config, the fastest first, of what is open.
        compiled: What came of those that were compiled.
    """

    def __init__(
        self,
        job: Job,
        phase: Phase,
        model: CostModel,
        default: KernelConfig,
        legal: Sequence[KernelConfig],
        pool: CompilePool | None,
        *,
        most: int,
        seconds: float,
    ) -> None:
        self._job, self._phase, self._model = job, phase, model
        self._default, self._legal = default, tuple(legal)
        self._pool, self._most, self._seconds = pool, most, seconds
        self._closed = False
        self.compiled: dict[KernelConfig, Measurement] = {}
        self.predicted = predict(model, self._legal, default, {})

    def compile(
        self, configs: Sequence[KernelConfig], report: Callable[[int], None] = lambda done: None
    ) -> None:
        """Compiles configs, in this order, and predicts all anew; those that were begun no more are
        left out.

        Args:
            configs: What to compile.
            report: Told how many are done.
        """
        if self._pool is None:
            return
        start = time.monotonic()
        new = [config for config in dict.fromkeys(configs) if config not in self.compiled]
        self.compiled |= self._pool.compile(
            self._job, self._phase, new, timeout=max(self._seconds, 1.0), report=report
        )
        self._seconds -= time.monotonic() - start
        self._predict_anew()

    def ready(self, config: KernelConfig) -> bool:
        """Whether a config was compiled, or need not be."""
        return self._pool is None or config in self.compiled or self._closed

    def prepare(self, wanted: Sequence[KernelConfig]) -> Mapping[KernelConfig, float]:
        """Compiles the next batch, one for each process; where there is neither room nor time for
        it, what was not compiled is open no more.

        Args:
            wanted: What is open, the most promising first; the first is not `ready`.

        Returns:
            What is open now, with its prediction.
        """
        assert self._pool is not None
        room = min(self._pool.processes, self._most - len(self.compiled))
        batch = [config for config in wanted if config not in self.compiled][: max(0, room)]
        before = len(self.compiled)
        if batch and self._seconds > 0:
            self.compile(batch)
        if len(self.compiled) == before:  # no room, or no time: what is compiled must do
            self._legal, self._closed = tuple({self._default: None} | self.compiled), True
            self._predict_anew()
        return self.predicted

    def _predict_anew(self) -> None:
        worth = {self._default, *survivors(self.compiled)}
        open_ = [each for each in self._legal if each in worth or each not in self.compiled]
        self.predicted = predict(self._model, open_, self._default, self.compiled)


def predict(
    model: CostModel,
    configs: Iterable[KernelConfig],
    default: KernelConfig,
    compiled: Mapping[KernelConfig, Measurement],
) -> dict[KernelConfig, float]:
    """Predicted seconds by config, the fastest first. What the model sees no use of, another order
    of tiles or a cap of registers that changes nothing, is expected to be slower, not equal."""
    found: dict[KernelConfig, float] = {}
    for config in configs:
        known = compiled.get(config)
        seconds = model.predict(config, known.resources if known else None).seconds
        for name in ("order", "neighbours", "max_registers"):
            seconds *= _UNSEEN ** (getattr(config, name) != getattr(default, name))
        found[config] = seconds
    return dict(sorted(found.items(), key=lambda pair: pair[1]))
