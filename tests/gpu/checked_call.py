"""A drawn call, run and compared with dense attention in float64, for `tests.gpu.random_calls`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import patterncc
from patterncc import cpu_calls, gpu_calls, programs, signatures
from patterncc.codegen.choice import tiling_names
from patterncc.codegen.gpu.config import visits_patches
from patterncc.codegen.score.reference import dense_attention
from tests.gpu.drawn_calls import DrawnCall, DrawnPattern, score_values, tensors_of, values_of

if TYPE_CHECKING:
    from patterncc.codegen.gpu.bound_launch import BoundLaunch

TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 2e-5}
"""Of outputs, as a share of the largest entry or of 1, where that is less; twice that for
gradients."""

LSE_TOLERANCE = 1e-4

CPU_EXECUTOR = "CPU executor"


@dataclass(frozen=True)
class Outcome:
    """What a call showed.

    Attributes:
        forward, backward: The kernels that ran, in words.
        errors: Largest differences from float64 as shares of the largest entry, by result.
        differences: What is wrong, in words.
    """

    forward: str
    backward: str
    errors: dict[str, float]
    differences: tuple[str, ...]


def run_call(
    drawn: DrawnPattern, attn: patterncc.Attention, call: DrawnCall, device: str
) -> Outcome:
    """Runs a call and compares it with the oracle."""
    inputs = [tensor.requires_grad_() for tensor in tensors_of(drawn, call, device)]
    on_host = values_of(drawn, call)
    numbers, terms = score_values(drawn, call)
    tables = {name: table.to(device).requires_grad_() for name, table in terms.items()}
    given: dict[str, Any] = {**on_host, **numbers, **tables}
    given = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in given.items()}
    given |= {"layer": call.layer, "layers": drawn.layers, "q_offset": call.q_offset}
    query, key, value = inputs
    leaves = [*inputs, *tables.values()]

    # Not by what is planned: what planned it could be another test of this process. Where kernels
    # are interpreted, they are what is called for tensors of a CPU.
    by_kernels = query.is_cuda or cpu_calls.attn_fwd is gpu_calls.attn_fwd
    with _filled_memory(exactly=drawn.deterministic):
        out, lse = attn(query, key, value, return_lse=True, **given)
        forward = _forward_name(attn, drawn, call) if by_kernels else CPU_EXECUTOR
        generator = torch.Generator().manual_seed(call.seed + 1)
        grads = (
            torch.randn(out.shape, generator=generator).to(out),
            torch.randn(lse.shape, generator=generator).to(lse),
        )
        found = torch.autograd.grad((out, lse), leaves, grads, retain_graph=True)
        backward = _backward_name() if by_kernels else CPU_EXECUTOR
    with _filled_memory(exactly=False), torch.no_grad():
        plain: dict[str, Any] = {
            n: x.detach() if isinstance(x, Tensor) else x for n, x in given.items()
        }
        out_again, lse_again = attn(
            query.detach(), key.detach(), value.detach(), return_lse=True, **plain
        )
    with _filled_memory(exactly=False):
        found_again = torch.autograd.grad((out, lse), leaves, grads)

    wanted = _oracle(drawn, attn, call, inputs, on_host, numbers, terms, grads)
    names = ("query", "key", "value", *tables)
    results = {"out": (out, out_again), "lse": (lse, lse_again)}
    for name, one, other in zip(names, found, found_again, strict=True):
        results[f"grad_{name}"] = one, other
    same_bits = set(results) if drawn.deterministic else {"out", "lse", "grad_key", "grad_value"}
    errors, differences = {}, []
    for name, (one, other) in results.items():
        if name in same_bits and not torch.equal(one, other):
            differences.append(f"{name}: a repeated call gives other bits")
        most = TOLERANCE[drawn.dtype] * (2 if name.startswith("grad_") else 1)
        most = LSE_TOLERANCE if name == "lse" else most
        errors[name] = max(_share(one, wanted[name]), _share(other, wanted[name]))
        if not errors[name] <= most:
            differences.append(f"{name}: differs by {errors[name]:.2g} of the largest entry")
    return Outcome(forward, backward, errors, tuple(differences))


def _oracle(
    drawn: DrawnPattern,
    attn: patterncc.Attention,
    call: DrawnCall,
    inputs: Sequence[Tensor],
    values: dict[str, Any],
    numbers: dict[str, float],
    terms: dict[str, Tensor],
    grads: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    """All results in float64, by name, from the mask of every pair."""
    reads = signatures.resolve(attn.pattern.structure).reads
    heads = range(drawn.heads if reads & {"head", "kv_head"} else 1)
    batches = range(call.batch if "batch" in reads else 1)
    where = {"layer": call.layer, "layers": drawn.layers, "q_offset": call.q_offset}
    sizes = {"heads": drawn.heads, "kv_heads": drawn.kv_heads}
    masks = [
        [
            attn.mask(call.q_len, call.kv_len, head, batch=batch, **where, **sizes, **values)
            for head in heads
        ]
        for batch in batches
    ]
    device = inputs[0].device
    mask = torch.stack([torch.stack(row) for row in masks]).to(device)
    leaves = [tensor.detach().double().requires_grad_() for tensor in inputs]
    tables = {name: t.to(device).double().requires_grad_() for name, t in terms.items()}
    query, key, value = leaves
    out, lse = dense_attention(
        query,
        key,
        value,
        mask,
        drawn.head_dims[0] ** -0.5,
        attn.terms,
        env=where,
        numbers=numbers,
        tables=tables,
    )
    live = lse.detach() > -math.inf  # the lse of other rows is a constant
    total = (out * grads[0].double()).sum()
    total = total + torch.where(live, lse * grads[1].double(), 0).sum()
    wanted = [*leaves, *tables.values()]
    found = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    names = ("query", "key", "value", *tables)
    results = {f"grad_{name}": grad for name, grad in zip(names, found, strict=True)}
    return results | {"out": out.detach(), "lse": lse.detach()}


def _share(found: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the largest entry, or of 1; infinite for NaN, and where
    not the same entries are infinite."""
    found = found.detach().double()
    live = wanted.isfinite()
    if not torch.equal(found.isfinite(), live):
        return math.inf
    if not bool(live.any()):
        return 0.0
    largest = max(1.0, float(wanted[live].abs().max()))
    return float((found[live] - wanted[live]).abs().max()) / largest


@contextmanager
def _filled_memory(exactly: bool) -> Iterator[None]:
    """New memory holds NaN.

    Args:
        exactly: Torch fills all of it, in a mode that also asks for deterministic gradients.
            Otherwise memory of many sizes is filled and freed, which its allocator hands out next.
    """
    if not exactly:
        if torch.cuda.is_available():
            sizes = [1 << power for power in range(8, 25) for _ in range(3)]
            spoiled = [torch.full((size,), torch.nan, device="cuda") for size in sizes]
            del spoiled
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------------------- what has run


def _forward_name(attn: patterncc.Attention, drawn: DrawnPattern, call: DrawnCall) -> str:
    """The emitter and the tiles of the forward kernels planned last, and the variables of their
    passes without their numbers."""
    steps = next(reversed(gpu_calls._forwards.values())).ready.steps or ()
    config = next(step.planned.source.config for step in steps if _attends(step))
    known = {"heads": drawn.heads, "kv_heads": drawn.kv_heads, "layers": drawn.layers}
    sizes = tuple((name, known[name]) for name in signatures.resolve(attn.pattern.structure).sizes)
    within = 0 <= call.q_offset <= call.kv_len - call.q_len
    patches = programs.takes_patches(attn.terms) and visits_patches(config.emitter)
    passes = programs.passes(
        attn.pattern.structure,
        config.block_q,
        config.block_k,
        sizes,
        within,
        False,
        gather=True,
        patches=patches,
    )
    tilings = sorted({re.sub(r"[\d x]*\d", "", name) for name in tiling_names(passes).split(" + ")})
    listed = " listed" * any(step.planned.source.name.startswith("list_") for step in steps)
    terms = "" if attn.terms.plain else ", score terms"
    return (
        f"{config.emitter} {config.block_q}x{config.block_k} {' + '.join(tilings)}{listed}{terms}"
    )


def _attends(step: BoundLaunch) -> bool:
    return step.planned.source.name.startswith("forward")


def _backward_name() -> str:
    """The kernels of the backward planned last: each once, with the number of its passes."""
    steps = next(reversed(gpu_calls._backwards.values())).ready.steps or ()
    names = Counter(step.planned.source.name for step in steps)
    return " + ".join(name for name in names if not name.startswith("list_")) or "nothing to do"
