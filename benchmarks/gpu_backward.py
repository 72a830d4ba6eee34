"""Training on one GPU: forward and backward beside FlexAttention and SDPA, times and peak memory.

    python benchmarks/gpu_backward.py --out results

Calls go through the public interface and autograd. Each pattern's gradients are checked against
float64 on one head first. TFLOP/s are on visible pairs, the backward's operations counted as 2.5
times the forward's, as is usual (two products forward, five backward). FlexAttention's block mask
is built beforehand. `results/gpu_backward.json` keeps everything. Most of the time goes into
compiling FlexAttention: about 5 minutes on an H100 or H200.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_cases import CASES, Case, Mask
from gpu_flex import Shape, flex_times, peak_bytes
from gpu_forward import milliseconds, visible_pairs

import patterncc

DEFAULT_CASES = (
    "full",
    "causal",
    "window 4096",
    "window 1024",
    "sinks 64 + window 4096",
    "local strided",
    "ladder",
    "dilated 512 step 8",
    "window by head, 512 to 4096",
    "packed, 16 documents",
)
ROWS = 512  # of the float64 reference at a time

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_backward.json")
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=None)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--only", default=",".join(DEFAULT_CASES), help="cases, commas between")
    parser.add_argument("--no-flex", action="store_true")
    parser.add_argument("--flex-seconds", type=float, default=300, help="to compile all masks")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda", 0)
    names = options.only.split(",")
    # "window by head, 512 to 4096" has a comma itself.
    cases = [case for case in CASES if case.name in names or case.name in options.only]
    cases = [case for case in cases if case.tiling == "auto" and case.name in DEFAULT_CASES]
    shape = Shape(
        options.heads, options.kv_heads or options.heads, options.length, options.head_dim
    )
    start = time.perf_counter()
    flex: dict[str, dict[str, float] | str] = {}
    if not options.no_flex:
        flex = flex_times(
            [case.name for case in cases],
            shape,
            options.head_dim**-0.5,
            options.flex_seconds,
            backward=True,
        )
    tensors = shape.tensors(device)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, ", end="")
    print(f"triton {triton.__version__}; {shape}, bf16")
    print(f"{'pattern':30}{'forward':>8}{'backward':>9}{'both ms':>9}{'MiB':>6}", end="")
    print(f"  flex:{'both ms':>9}{'MiB':>6}{'x':>6}  SDPA both ms")
    results: list[dict[str, Any]] = []
    report = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "options": {k: str(v) for k, v in vars(options).items() if k != "out"},
        "results": results,
    }
    for case in cases:
        result = run_case(case, tensors, flex.get(case.name))
        result["seconds"] = time.perf_counter() - start
        results.append(result)
        print_row(result)
        (options.out / "gpu_backward.json").write_text(json.dumps(report, indent=1))


def run_case(case: Case, tensors: Tensors, flex: dict[str, float] | str | None) -> dict[str, Any]:
    """Checks and times one pattern, and SDPA beside it; `flex` has FlexAttention's times."""
    query = tensors[0]
    heads, length, head_dim = query.shape[1:]
    device = query.device
    attention = patterncc.compile(case.text)
    tables = case.tables_on(device, length, heads)
    numbers = {name: number for name, number in case.values.items() if name != "layer"}
    mask = case.flex(tables)

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attention(query, key, value, **numbers, **tables)

    gradient = torch.randn_like(query)
    errors = gradient_errors(mask, call, tensors, gradient)
    pairs = visible_pairs(mask, heads, length, device)
    flops = 4 * pairs * head_dim
    times = training_times(call, tensors, gradient)
    result: dict[str, Any] = {
        "case": case.name,
        "text": case.text,
        "density": pairs / (heads * length**2),
        "errors": errors,
        **times,
        "forward_tflops": flops / times["ms"] / 1e9,
        "backward_tflops": 2.5 * flops / (times["both_ms"] - times["ms"]) / 1e9,
        "flex": flex,
        "sdpa": sdpa_times(case, mask, tensors, gradient),
    }
    return result


def training_times(
    call: Callable[..., torch.Tensor], tensors: Tensors, gradient: torch.Tensor
) -> dict[str, float]:
    """Times of a call without and with its gradients, and the peak memory of the latter."""
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]

    def both() -> None:
        torch.autograd.grad(call(*inputs), inputs, gradient)

    both()
    with torch.no_grad():
        ms = milliseconds(lambda: call(*tensors))
    return {"ms": ms, "both_ms": milliseconds(both), "peak_bytes": peak_bytes(both)}


def sdpa_times(
    case: Case, mask: Mask, tensors: Tensors, gradient: torch.Tensor
) -> dict[str, dict[str, float] | str]:
    """The dense kernels of torch: without a mask where they can do, else with it as a tensor."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query, key, _ = tensors
    length, device = key.shape[2], query.device
    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    given: dict[str, Any] = {"is_causal": case.name == "causal"}
    if case.name not in ("full", "causal"):
        if case.per_head:
            return {}
        place = torch.arange(length, device=device)
        given = {"attn_mask": mask(0, 0, place[:, None], place[None, :])}
        backends = {"efficient": SDPBackend.EFFICIENT_ATTENTION}
    found: dict[str, dict[str, float] | str] = {}
    for name, backend in backends.items():

        def call(
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            backend: SDPBackend = backend,
        ) -> torch.Tensor:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    query, key, value, enable_gqa=query.shape[1] != key.shape[1], **given
                )

        try:
            found[name] = training_times(call, tensors, gradient)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            found[name] = str(error).splitlines()[0][:200]
    return found


def gradient_errors(
    mask: Mask, call: Callable[..., torch.Tensor], tensors: Tensors, gradient: torch.Tensor
) -> dict[str, float]:
    """Largest errors of the gradients of the first key head, relative to the largest entry.

    The reference is dense, in float64, some rows at a time; the mask is FlexAttention's, written by
    hand.
    """
    query, key, value = tensors
    group = query.shape[1] // key.shape[1]
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    found = torch.autograd.grad(call(*inputs), inputs, gradient)
    keys, values = key[0, 0].double(), value[0, 0].double()
    expected = [torch.zeros_like(found[0][0, :group], dtype=torch.float64)]
    expected += [torch.zeros_like(keys), torch.zeros_like(values)]
    scale = query.shape[-1] ** -0.5
    place = torch.arange(key.shape[2], device=query.device)
    for head in range(group):
        for low in range(0, query.shape[2], ROWS):
            rows = slice(low, low + ROWS)
            q, g = query[0, head, rows].double(), gradient[0, head, rows].double()
            at = torch.arange(low, low + len(q), device=query.device)
            number = torch.tensor(head, device=query.device)
            allowed = mask(0, number, at[:, None], place[None, :])
            scores = (q @ keys.T * scale).masked_fill(~allowed, -math.inf)
            weights = scores.softmax(-1).nan_to_num(0.0)
            above = g @ values.T
            slope = weights * (above - (weights * above).sum(-1, keepdim=True))
            expected[0][head, rows] = scale * slope @ keys
            expected[1] += scale * slope.T @ q
            expected[2] += weights.T @ g
    picked = (found[0][0, :group], found[1][0, 0], found[2][0, 0])
    errors = {
        name: ((one.double() - other).abs().max() / other.abs().max()).item()
        for name, one, other in zip(("query", "key", "value"), picked, expected, strict=True)
    }
    if not max(errors.values()) < 2e-2:
        raise AssertionError(f"gradients differ from float64: {errors}")
    return errors


def print_row(result: dict[str, Any]) -> None:
    print(f"{result['case']:30}{result['forward_tflops']:8.0f}", end="")
    print(f"{result['backward_tflops']:9.0f}{result['both_ms']:9.3f}", end="")
    print(f"{result['peak_bytes'] / 2**20:6.0f}", end="")
    flex = result["flex"]
    if isinstance(flex, dict):
        print(f"       {flex['both_ms']:9.3f}{flex['peak_bytes'] / 2**20:6.0f}", end="")
        print(f"{flex['both_ms'] / result['both_ms']:6.2f}", end="")
    else:
        print(f"  flex: {flex}"[:80], end="")
    for name, sdpa in result["sdpa"].items():
        if isinstance(sdpa, dict):
            print(f"  {name} {sdpa['both_ms']:.3f}", end="")
    print(f"  ({result['seconds']:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
