"""How a compiled pattern is tuned from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patterncc.dsl.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from patterncc.autotune.entries import Entry
    from patterncc.dsl.score.terms import ScoreTerms
    from patterncc.signatures import Signature


class Tunable:
    """The part of `Attention` that tunes."""

    __slots__ = ()

    if TYPE_CHECKING:
        _signature: Signature
        _terms: ScoreTerms

    def tune(
        self,
        /,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        phases: Sequence[str] | None = None,
        trials: int = 60,
        seconds: float = 300.0,
        layer: int = 0,
        layers: int | None = None,
        q_offset: int | None = None,
        **values: float | Tensor,
    ) -> Mapping[str, Entry]:
        """Looks for the fastest configs of a call like this one, on its device, keeps them and lets
        later calls take them: what `patterncc tune` does.

        The tensors give shapes, types and device; what is timed is random input of that kind, in
        another process, which needs as much memory again. Where `torch.distributed` is initialised
        this is a collective call: the first rank tunes and all take what it found.

        Args:
            query, key, value: As of a call.
            phases: Of `forward`, `grad_query`, `grad_key_value`; all that the device has something
                to tune in if not given.
            trials: Configs that are tried, of each phase.
            seconds: Of each phase, at most.
            layer, layers, q_offset: As of a call.
            **values: Run-time numbers and tables by name.

        Returns:
            What is kept, by the name of the phase.

        Raises:
            ArgumentError: An argument is missing, unknown or does not fit.
            UnsupportedError: The pattern, device or dtype has no kernel, or it has score terms.
            ConfigError: There is no such phase, or nothing to tune in it there.
            TuningError: No config worked, or processes cannot measure here.
        """
        from patterncc import autotuning
        from patterncc.autotune.options import Options
        from patterncc.autotune.search import Limits
        from patterncc.settings import kernel_folder

        refuse_terms(self._terms)
        where = {"q_offset": q_offset, "layer": layer, "layers": layers}
        job = autotuning.job_of_tensors(self._signature, query, key, value, values=values, **where)  # type: ignore[arg-type]
        options = Options(Limits(trials, seconds), folder=kernel_folder())
        wanted = autotuning.phases_of(phases, query.device)
        return autotuning.tune_job(job, wanted, query.device, options)

    def _settle(self, tensors: tuple[Tensor, Tensor, Tensor], values: Any, **where: Any) -> None:
        """Tunes what a call needs and nobody has tuned; nothing while it is traced or captured."""
        import torch

        from patterncc import autotuning

        query = tensors[0]
        if torch.compiler.is_compiling() or (
            query.is_cuda and torch.cuda.is_current_stream_capturing()
        ):
            return
        gradients = torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
        job = autotuning.job_of_tensors(self._signature, *tensors, values=values, **where)
        phases = autotuning.phases_of(None, query.device)
        wanted = [phase for phase in phases if gradients or phase.name == "forward"]
        autotuning.ensure(job, wanted, query.device)


def refuse_terms(terms: ScoreTerms) -> None:
    """Refuses score terms, whose kernels run with their default configs.

    Raises:
        UnsupportedError: There are some.
    """
    if not terms.plain:
        raise UnsupportedError(
            "kernels with score terms are not tuned", "leave out `score` and `sink`, or the tuning"
        )
