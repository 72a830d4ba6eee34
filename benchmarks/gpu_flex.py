"""FlexAttention's times for the cases of `gpu_cases.py`, compiled side by side.

Inductor takes from half a minute to two for a mask. Each case compiles in a process of its own, all
at once; when every one is done, or the time for it is over, they are timed one after another.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from gpu_cases import CASES


@dataclass(frozen=True)
class Shape:
    """Sizes of a call, without offset."""

    heads: int
    kv_heads: int
    length: int
    head_dim: int

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Random query, key and value."""
        torch.manual_seed(0)
        query = (1, self.heads, self.length, self.head_dim)
        key = (1, self.kv_heads, self.length, self.head_dim)
        return tuple(  # type: ignore[return-value]
            torch.randn(size, dtype=torch.bfloat16, device=device) for size in (query, key, key)
        )


def flex_times(
    names: Sequence[str], shape: Shape, scale: float, seconds: float, *, backward: bool = False
) -> dict[str, dict[str, float] | str]:
    """What each case takes, or why there is no answer; compiling takes `seconds` at most.

    Returns:
        By name `ms`, the milliseconds of a call with a block mask that is there, and `mask_ms`, of
        making it. With `backward` also `both_ms`, of a call and its gradients, and `peak_bytes`,
        what these need at most beyond inputs, block mask and the gradient of the output.
    """
    context = multiprocessing.get_context("spawn")
    compiled, timing, found = context.Barrier(len(names)), context.Lock(), context.Queue()
    processes = [
        context.Process(
            target=_measure, args=(name, shape, scale, seconds, backward, compiled, timing, found)
        )
        for name in names
    ]
    for process in processes:
        process.start()
    results: dict[str, dict[str, float] | str] = dict.fromkeys(names, "not compiled in time")
    end = time.monotonic() + 1.2 * seconds
    try:
        for _ in names:
            name, result = found.get(timeout=max(end - time.monotonic(), 0.1))
            results[name] = result
    except queue.Empty:
        pass
    for process in processes:
        process.kill()
        process.join()
    return results


def peak_bytes(run: Callable[[], object]) -> int:
    """What a call allocates at most at one time."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _measure(
    name: str,
    shape: Shape,
    scale: float,
    seconds: float,
    backward: bool,
    compiled: Any,
    timing: Any,
    found: Any,
) -> None:
    """Compiles one case, waits for the others, times it alone."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of compilers in each process
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    try:
        device = torch.device("cuda", 0)
        tensors = query, key, value = shape.tensors(device)
        gradient = torch.randn_like(query)
        (case,) = (case for case in CASES if case.name == name)
        mask = case.flex(case.tables_on(device, shape.length, shape.heads))
        heads = shape.heads if case.per_head else None
        sizes = (None, heads, shape.length, shape.length)
        block_mask = create_block_mask(mask, *sizes, device=device)
        attention = torch.compile(flex_attention)
        gqa = shape.heads != shape.kv_heads

        def run() -> Any:
            return attention(query, key, value, block_mask=block_mask, scale=scale, enable_gqa=gqa)

        def both() -> None:
            torch.autograd.grad(run(), tensors, gradient)

        run()
        if backward:
            for tensor in tensors:
                tensor.requires_grad_()
            both()
        torch.cuda.synchronize()
        with contextlib.suppress(threading.BrokenBarrierError):  # one failed: no use waiting for it
            compiled.wait(seconds)
        with timing:
            ms = triton.testing.do_bench(run, warmup=20, rep=100, return_mode="median")
            measured = {"ms": float(ms)}
            if backward:
                ms = triton.testing.do_bench(both, warmup=20, rep=100, return_mode="median")
                measured |= {"both_ms": float(ms), "peak_bytes": peak_bytes(both)}
            torch.cuda.synchronize()
            start = time.perf_counter()
            create_block_mask(mask, *sizes, device=device)
            torch.cuda.synchronize()
            mask_ms = 1000 * (time.perf_counter() - start)
        found.put((name, measured | {"mask_ms": mask_ms}))
    except Exception as error:  # FlexAttention cannot do this case; the others go on without it
        compiled.abort()
        found.put((name, f"{type(error).__name__}: {error}"[:300]))
