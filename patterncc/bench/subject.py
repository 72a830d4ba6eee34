"""One peer at one request, in a process of its own: made ready, judged, timed round by round."""

from __future__ import annotations

import gc
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from patterncc.autotune.child import describe
from patterncc.bench.peer import Peer, PeerSpec, Ready
from patterncc.bench.readings import Judgement, Reading, Round, State
from patterncc.bench.request import Phase, Request
from patterncc.bench.stopwatch import Stopwatch, elapsed
from patterncc.bench.unfused import unfused_signs
from patterncc.dsl.errors import UnsupportedError
from patterncc.gradient_verdict import judge_gradients, sampled_rows
from patterncc.verdict import Oracle, judge

_MASK_CALLS = 3  # makings of a mask, of which the median counts
_MOST_PAIRS = {"cpu": 1 << 24, "cuda": 1 << 26}  # of a row and a key, that are judged


class Subject:
    """A peer and what it is asked, on the device of this process.

    Args:
        spec: Which peer.
        request: The call.
        phases: What will be timed.
    """

    def __init__(self, spec: PeerSpec, request: Request, phases: tuple[Phase, ...]) -> None:
        self._spec, self._request, self._phases = spec, request, phases
        self._device = torch.device(request.device)
        self._expected: dict[Phase, float] = {}
        self._watch: Stopwatch
        self._ready: Ready
        self._inputs: tuple[Tensor, ...]
        self._grad_out: Tensor

    def prepare(self) -> Reading:
        """Makes the peer ready and judges its results; the state is `ready`, or why it is not."""
        try:
            return self._prepare()
        except UnsupportedError as error:
            return Reading("cannot", str(error))
        except torch.OutOfMemoryError as error:
            return Reading("out of memory", describe(error))
        except Exception as error:  # of any library below
            return Reading("refused", _root(error))

    def pairs(self) -> int:
        """The visible pairs of the request, counted here: many patterns have tables, and a
        count can take half a minute of one core."""
        return self._request.pairs

    def settle(self) -> float:
        """Sees how long calls take, once nobody else uses the device.

        Returns:
            Seconds of making what describes the mask, until the device has done it.
        """
        masks = [elapsed(self._ready.rebuild, self._device) for _ in range(_MASK_CALLS)]
        for phase in self._phases:
            self._once(phase)
            self._expected[phase] = elapsed(lambda phase=phase: self._once(phase), self._device)  # type: ignore[misc]
        return sorted(masks)[_MASK_CALLS // 2]

    def time(self, phase: Phase) -> Round:
        """A round of calls of a phase, after `settle`."""
        if phase == "fresh":
            seconds = (self._watch.wall(self._fresh),)
            return Round(seconds, seconds)
        run, prepare = self._work(phase)
        return self._watch.round(run, prepare, self._expected[phase])

    def recheck(self) -> tuple[State, str]:
        """Judges the output once more, after all rounds: `timed`, or `wrong` and why."""
        with torch.no_grad():
            judged = self._judge_output()
        if judged["output"] > 1:
            return "wrong", f"after the timed calls {_words(judged)}"
        return "timed", ""

    # --------------------------------------------------------------------------- making it ready

    def _prepare(self) -> Reading:
        module = importlib.import_module(self._spec.module)
        peer: Peer = getattr(module, self._spec.function)(*self._spec.arguments)
        missing = peer.why_not(self._device)
        if missing:
            return Reading("absent", missing)
        self._watch = Stopwatch(self._device)
        tensors = self._request.input()
        kept = 0

        def start() -> None:
            nonlocal kept
            self._ready = peer.bind(self._request)
            kept = self._ready.rebuild()
            if self._device.type == "cuda":  # others that get ready need the memory
                torch.cuda.empty_cache()
            self._inputs = tuple(self._laid_out(tensor) for tensor in tensors)
            self._grad_out = self._random_gradient()
            self._forward()

        first = elapsed(start, self._device)
        notes = [self._ready.note]
        try:
            first += elapsed(lambda: [self._once(phase) for phase in self._phases], self._device)
        except Exception as error:  # of any library below
            if "forward" not in self._phases or isinstance(error, torch.OutOfMemoryError):
                raise
            self._phases = ("forward",)
            notes.append(f"no backward: {_root(error)}")
        signs = self._unfused() if peer.fused else ()
        if signs:
            return Reading("unfused", f"it does not run as one kernel: {', '.join(signs)}")
        judgement = self._judge(tensors)
        if judgement.worst[1] > 1:
            return Reading("wrong", _words(judgement.errors), judgement=judgement)
        return Reading(
            "ready",
            note="; ".join(filter(None, notes)),
            judgement=judgement,
            first_seconds=first,
            mask_bytes=kept,
            peak_bytes=self._peaks(),
            phases=self._phases,
        )

    def _unfused(self) -> tuple[str, ...]:
        """What shows that forward or backward are not one kernel each."""
        found = unfused_signs(self._forward)
        if self._phases != ("forward",):
            found += unfused_signs(lambda: self._once("both"))
        return tuple(sorted(set(found)))

    def _laid_out(self, tensor: Tensor) -> Tensor:
        """A tensor `[batch, heads, length, dim]` in the layout of the peer, and back."""
        return tensor.transpose(1, 2).contiguous() if self._ready.tokens_first else tensor

    def _random_gradient(self) -> Tensor:
        call, problem = self._request.call, self._request.problem
        sizes = (self._request.batch, call.heads, call.q_len, problem.value_head_dim)
        generator = torch.Generator().manual_seed(self._request.seed + 1)
        drawn = torch.randn(sizes, generator=generator).to(self._inputs[0])
        return self._laid_out(drawn)

    def _peaks(self) -> dict[Phase, int]:
        if self._device.type != "cuda":
            return {}
        found: dict[Phase, int] = {}
        for phase in self._phases:
            # What an earlier call left in cycles would count as allocated before, and be freed
            # during this one.
            gc.collect()
            torch.cuda.reset_peak_memory_stats(self._device)
            before = torch.cuda.memory_allocated(self._device)
            self._once(phase)
            torch.cuda.synchronize(self._device)
            found[phase] = torch.cuda.max_memory_allocated(self._device) - before
        return found

    # ------------------------------------------------------------------------------- the phases

    def _work(self, phase: Phase) -> tuple[Callable[[Any], object], Callable[[], object]]:
        """What is timed, and what comes before it."""
        attend = self._ready.attend
        if phase == "forward":
            return lambda _: self._forward(), lambda: None
        leaves = [tensor.detach().requires_grad_() for tensor in self._inputs]
        first, second, third = leaves

        def backward(out: Tensor) -> Sequence[Tensor]:
            return torch.autograd.grad(out, leaves, self._grad_out)

        if phase == "backward":
            return backward, lambda: attend(first, second, third)
        return lambda _: backward(attend(first, second, third)), lambda: None

    def _once(self, phase: Phase) -> object:
        if phase == "fresh":
            return self._fresh()
        run, prepare = self._work(phase)
        return run(prepare())

    @torch.no_grad()
    def _forward(self) -> Tensor:
        query, key, value = self._inputs
        return self._ready.attend(query, key, value)

    def _fresh(self) -> object:
        """A training step on new documents: their mask, attention, its gradients."""
        self._ready.rebuild()
        return self._once("both")

    # ------------------------------------------------------------------------------- the verdict

    def _judge(self, tensors: tuple[Tensor, Tensor, Tensor]) -> Judgement:
        errors = self._judge_output()
        most = _MOST_PAIRS[self._device.type] // 4
        rows = sampled_rows(self._request.call, self._request.batch, self._request.seed, most)
        if any(phase != "forward" for phase in self._phases):
            errors |= self._judge_gradients(tensors, rows)
        return Judgement(errors, len(rows))

    def _judge_output(self) -> dict[str, float]:
        self._poison()
        query, key, value = (self._laid_out(tensor) for tensor in self._inputs)
        verdict = judge(
            self._request.call,
            query,
            key,
            value,
            self._laid_out(self._forward()),
            None,
            layer=self._request.layer,
            seed=self._request.seed,
            most_pairs=_MOST_PAIRS[self._device.type],
            oracle=Oracle(device=self._device),
        )
        return {"output": verdict.error / verdict.tolerance}

    def _judge_gradients(
        self, tensors: tuple[Tensor, Tensor, Tensor], rows: Tensor
    ) -> dict[str, float]:
        grad_out = torch.zeros_like(self._laid_out(self._grad_out))
        grad_out[:, :, rows.to(self._device)] = self._laid_out(self._grad_out)[
            :, :, rows.to(self._device)
        ]
        leaves = [tensor.detach().requires_grad_() for tensor in self._inputs]
        out = self._ready.attend(leaves[0], leaves[1], leaves[2])
        self._poison()
        grads = torch.autograd.grad(out, leaves, self._laid_out(grad_out))
        verdict = judge_gradients(
            self._request.call,
            tensors,
            grad_out,
            [self._laid_out(grad) for grad in grads],
            rows,
            layer=self._request.layer,
            oracle=Oracle(device=self._device),
        )
        return {name: error / verdict.tolerance for name, error in verdict.errors.items()}

    def _poison(self) -> None:
        """Leaves memory full of what is not a number where the next results are likely to lie."""
        kept = [torch.full_like(self._grad_out, math.nan) for _ in range(2)]
        kept += [torch.full_like(tensor, math.nan) for tensor in self._inputs]
        del kept


def _root(error: BaseException) -> str:
    """The error that compilers wrapped in theirs, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return describe(error)


def _words(errors: Mapping[str, float]) -> str:
    name = max(errors, key=lambda one: errors[one])
    return f"its {name} is {errors[name]:.3g} times as far from float64 as is allowed"


def make(spec: PeerSpec, request: Request, phases: tuple[Phase, ...]) -> Subject:
    """The subject of a process."""
    return Subject(spec, request, phases)
