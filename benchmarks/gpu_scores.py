"""Score terms on one GPU: forward and backward with each term, beside FlexAttention's `score_mod`.

    python benchmarks/gpu_scores.py

Calls go through the public interface and autograd, in bfloat16; times are the least of three means
over ten calls (five backward), in milliseconds. Tables have gradients, FlexAttention's have none.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import patterncc

TERMS: tuple[tuple[str | None, str | None], ...] = (
    (None, None),
    ("softcap(score, 50)", None),
    (None, "sinks[head]"),
    ("score + alibi(slopes)", None),
    ("score + relative_bias(bias, 128)", None),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of score terms")
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--patterns", nargs="+", default=["causal", "window(1024)"])
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = (1, options.heads, options.length, options.head_dim)
    inputs = [
        torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)
    ]
    heads = options.heads
    tables = {
        "slopes": torch.rand(heads, device="cuda") * 0.1,
        "sinks": torch.zeros(heads, device="cuda"),
        "bias": torch.randn(heads, 257, device="cuda"),
    }
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, triton {triton.__version__}, {list(shape)}")
    for pattern in options.patterns:
        for score, sink in TERMS:
            attend = patterncc.compile(pattern, score=score, sink=sink)
            own = {name: tables[name].clone().requires_grad_() for name in attend.terms.tables}
            report(f"{pattern}, {sink or score}", *times(attend, inputs, own))
    block_mask = create_block_mask(
        lambda b, h, q, k: q >= k, None, None, options.length, options.length
    )
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    for name, modify in (("None", None), ("softcap", _softcap)):

        def flex(query: Tensor, key: Tensor, value: Tensor, modify: Any = modify) -> Tensor:
            out: Tensor = compiled(query, key, value, score_mod=modify, block_mask=block_mask)
            return out

        report(f"flex_attention causal, {name}", *times(flex, inputs, {}))


def times(
    attend: Callable[..., Any], inputs: list[Tensor], tables: dict[str, Tensor]
) -> tuple[float, float]:
    """Milliseconds forward and backward."""
    with torch.no_grad():
        forward = least_mean(lambda: attend(*inputs, **tables), 10)
    out = attend(*inputs, **tables)
    grad_out = torch.randn_like(out)
    leaves = [*inputs, *tables.values()]

    def backward() -> None:
        torch.autograd.grad(out, leaves, grad_out, retain_graph=True)

    return forward, least_mean(backward, 5)


def least_mean(run: Callable[[], Any], calls: int) -> float:
    """The least of three means over some calls, after two that compile and warm up."""
    run()
    run()
    found = []
    for _ in range(3):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            run()
        stop.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(stop) / calls)
    return min(found)


def report(name: str, forward: float, backward: float) -> None:
    print(f"{name:48} forward {forward:8.3f} ms   backward {backward:8.3f} ms", flush=True)


def _softcap(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return 50 * torch.tanh(score / 50)


if __name__ == "__main__":
    main()
