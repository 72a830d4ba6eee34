"""Random patterns and calls through `patterncc.compile(...)`: are outputs and gradients right, and
those of repeated calls the same bits?

    python -m tests.gpu.random_calls [--seed N] [--calls N] [--each N] [--seconds S] [--json FILE]
                                     [--device cuda|cpu|interpreter] [--processes N] [--longest N]
                                     [--origin text|library|mask|tables|long]

Patterns of the seeds from `--seed` on are drawn by `tests.gpu.drawn_calls`, `--each` calls of each,
until there are `--calls` of them or `--seconds` are over. Each call runs forward and backward
twice, the second forward without a graph, as calls of inference run; memory past the rows of
tensors and all new memory hold NaN. Results are compared with dense attention in float64.

Processes take patterns one by one and compile their kernels side by side; on a GPU each has a
context of its own, so that an illegal access is one pattern's. A failure is printed with its seed:
`--seed S --calls 1 --each E` draws the pattern again. With `--device interpreter` the kernels of
GPUs run in Triton's interpreter on the CPU, with `--device cpu` the CPU executor does.

Exit code 1 if anything differs, or a process had to be ended in the middle of a pattern.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and "interpreter" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # triton asks for it when it is imported

import torch

from patterncc import cpu_calls, gpu_calls
from patterncc.codegen.gpu.launch import interpreting
from patterncc.dsl.errors import UnsupportedError
from tests.gpu.call_summary import Message, Summary, table
from tests.gpu.checked_call import run_call
from tests.gpu.drawn_calls import MOST, draw_calls, draw_pattern

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.sharedctypes import Synchronized

GRACE = 25.0  # seconds that a process has to end its call after the time is over


def work(
    options: argparse.Namespace,
    following: Synchronized[int],
    left: Synchronized[int],
    until: float,
    messages: Queue[Message],
) -> None:
    """What a process does: patterns until there are enough calls.

    Args:
        options: Of the command line.
        following: The seed of the next pattern.
        left: How many calls nobody has taken yet.
        until: When to take no more calls, of `time.monotonic`.
        messages: Where to say what happened.
    """
    torch.set_num_threads(1)
    if options.device == "interpreter":
        assert interpreting()
        # Before `patterncc.operators` hands them to torch.
        vars(cpu_calls).update(attn_fwd=gpu_calls.attn_fwd, attn_bwd=gpu_calls.attn_bwd)
    while time.monotonic() < until:
        with following.get_lock(), left.get_lock():
            count = min(options.each, left.value)
            number, left.value = following.value, left.value - count
            following.value += 1
        if count == 0:
            return
        messages.put(Message("begun", number))
        try:
            done = _run_pattern(options, number, count, until, messages)
        except Exception as error:
            done = 0
            messages.put(Message("failed", number, f"drawing: {type(error).__name__}: {error}"))
        with left.get_lock():
            left.value += count - done
        messages.put(Message("ended", number))


def _run_pattern(
    options: argparse.Namespace, number: int, count: int, until: float, messages: Queue[Message]
) -> int:
    """Draws a pattern and runs at most so many calls of it; how many it ran."""
    device = "cuda" if options.device == "cuda" else "cpu"
    drawn = draw_pattern(number, options.origin)
    attn = drawn.compiled()
    if drawn.origin == "long":
        count = min(count, 3)
    kept: dict[str, Any] = {"text": attn.text, "score": drawn.score, "sink": drawn.sink}
    kept |= {"dtype": str(drawn.dtype), "head_dims": drawn.head_dims}
    kept |= {"heads": drawn.heads, "kv_heads": drawn.kv_heads, "layers": drawn.layers}
    kept |= {"deterministic": drawn.deterministic}
    for done, call in enumerate(draw_calls(drawn, count, options.longest)):
        told = {**kept, **asdict(call)}
        if time.monotonic() > until:
            return done
        try:
            outcome = run_call(drawn, attn, call, device)
        except UnsupportedError as error:
            messages.put(Message("refused", number, str(error).partition("\n")[0], told))
            return done
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            messages.put(Message("failed", number, words[:2000], told))
            if isinstance(error, RuntimeError) and "CUDA error" in words:
                _leave(messages)  # its context is lost
            return done
        messages.put(Message("called", number, outcome, told))
    return count


def _leave(messages: Queue[Message]) -> None:
    messages.close()
    messages.join_thread()
    os._exit(3)


def run_all(options: argparse.Namespace) -> Summary:
    """Runs all calls in processes of their own; the parent never talks to the GPU."""
    context = multiprocessing.get_context("fork")
    following, left = context.Value("q", options.seed), context.Value("q", options.calls)
    messages: Queue[Message] = context.Queue()
    until = time.monotonic() + options.seconds
    summary = Summary()

    def started() -> Any:
        process = context.Process(target=work, args=(options, following, left, until, messages))
        process.start()
        return process

    processes = [started() for _ in range(options.processes)]
    while processes:
        try:
            summary.take(messages.get(timeout=0.2))
            continue
        except queue.Empty:
            pass
        if time.monotonic() > until + GRACE:
            for process in processes:
                process.kill()
        for process in [each for each in processes if not each.is_alive()]:
            processes.remove(process)
            if process.exitcode and time.monotonic() < until:
                processes.append(started())
    while not messages.empty():
        summary.take(messages.get())
    return summary


def main() -> int:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first pattern (0)")
    parser.add_argument("--calls", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--each", type=int, default=12, help="of one pattern (12)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="at most, about (3600)")
    parser.add_argument("--json", type=Path, help="file for the summary")
    parser.add_argument("--device", choices=("cuda", "cpu", "interpreter"), default="cuda")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at the same time")
    parser.add_argument("--longest", type=int, default=MOST, help=f"rows or keys ({MOST})")
    parser.add_argument("--origin", choices=("text", "library", "mask", "tables", "long"))
    options = parser.parse_args()
    start = time.perf_counter()
    summary = run_all(options)
    document = {
        "seed": options.seed,
        "device": options.device,
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "seconds": round(time.perf_counter() - start),
        **summary.document(),
    }
    print(table(document))
    for message, count in summary.refused.items():
        print(f"refused {count}: {message}")
    wrong = len(summary.failures)
    print(
        f"{summary.calls} calls of {len(summary.patterns)} patterns in {document['seconds']} s: "
        f"{wrong} failures, {len(summary.running)} not ended"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong or summary.running else 0


if __name__ == "__main__":
    sys.exit(main())
