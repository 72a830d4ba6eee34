"""The gradients of one pattern on this machine: judged by the oracle, and timed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patterncc.call import Call
from patterncc.gradient_verdict import GradientVerdict, judge_gradients, sampled_rows
from patterncc.rivals import Dense, race_against, rivals_of
from patterncc.timing import Timing, once
from patterncc.verdict import PLAIN_ORACLE, Oracle

Attend = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class BackwardTrial:
    """What a run of the gradients found.

    Attributes:
        first: Seconds of the first backward, which on GPUs lowers the other direction of the
            pattern and compiles kernels.
        timing: Of the backwards after it, without their forward.
        verdict: Whether the gradients are right.
        dense: The backward of dense attention.
    """

    first: float
    timing: Timing
    verdict: GradientVerdict
    dense: tuple[Dense, ...]


def try_backward(
    attend: Attend,
    call: Call,
    inputs: tuple[Tensor, Tensor, Tensor],
    *,
    layer: int = 0,
    seed: int = 0,
    repeats: int | None = None,
    report: Callable[[str], None] = lambda _: None,
    tables: Sequence[Tensor] = (),
    oracle: Oracle = PLAIN_ORACLE,
) -> BackwardTrial:
    """Takes gradients of attention under a pattern, judges them and times the backward.

    Args:
        attend: Attention under the pattern, from query, key and value, and `tables`.
        call: The pattern and its sizes.
        inputs: Query, key and value.
        layer: Layer number.
        seed: Of the gradient of the output, and of the rows that are checked.
        repeats: Timed backwards; as many as fit in a second if not given.
        report: Told what is being done, for a person who waits.
        tables: Of the score terms, in the order of the oracle's.
        oracle: What is right.
    """
    device = inputs[0].device
    leaves = [tensor.detach().requires_grad_() for tensor in (*inputs, *tables)]
    out = attend(*leaves)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 1)).to(out)

    def backward(
        result: Tensor, grad: Tensor, inputs: Sequence[Tensor] = leaves
    ) -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, inputs, grad, retain_graph=True)

    report("compiling and running the backward ...")
    first = once(lambda: backward(out, grad_out), device)
    rows = sampled_rows(call, len(inputs[0]), seed)
    checked = torch.zeros_like(grad_out)
    checked[:, :, rows.to(device)] = grad_out[:, :, rows.to(device)]
    report("checking gradients against dense attention in float64 ...")
    verdict = judge_gradients(
        call, inputs, checked, backward(out, checked), rows, layer=layer, oracle=oracle
    )
    del checked
    report("timing the backward ...")

    def work(rival: Attend) -> Callable[[], Sequence[Tensor]]:
        result = rival(*leaves[:3])
        return lambda: backward(result, grad_out, leaves[:3])

    rivals = rivals_of(call, device, layer, plain=oracle.terms.plain)
    timing, dense = race_against(lambda: backward(out, grad_out), rivals, work, device, repeats)
    return BackwardTrial(first, timing, verdict, dense)
