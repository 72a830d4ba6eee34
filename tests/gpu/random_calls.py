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
import math
import multiprocessing
import os
import queue
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if __name__ == "__main__" and "interpreter" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # triton asks for it when it is imported

import torch
from torch import Tensor

import patterncc
from patterncc import cpu_calls, gpu_calls, programs, signatures
from patterncc.codegen.choice import tiling_names
from patterncc.codegen.gpu.config import visits_patches
from patterncc.codegen.gpu.launch import interpreting
from patterncc.codegen.score.reference import dense_attention
from patterncc.dsl.errors import UnsupportedError
from tests.gpu.drawn_calls import (
    MOST,
    DrawnCall,
    DrawnPattern,
    draw_calls,
    draw_pattern,
    score_values,
    tensors_of,
    values_of,
)

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.sharedctypes import Synchronized

    from patterncc.codegen.gpu.bound_launch import BoundLaunch

TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 2e-5}
"""Of outputs, as a share of the largest entry or of 1, where that is less; twice that for
gradients."""

LSE_TOLERANCE = 1e-4
GRACE = 25.0  # seconds that a process has to end its call after the time is over


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


# ------------------------------------------------------------------------------------- one call


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

    with _filled_memory(exactly=drawn.deterministic):
        out, lse = attn(query, key, value, return_lse=True, **given)
        forward = _forward_name(attn, drawn, call)
        generator = torch.Generator().manual_seed(call.seed + 1)
        grads = (
            torch.randn(out.shape, generator=generator).to(out),
            torch.randn(lse.shape, generator=generator).to(lse),
        )
        found = torch.autograd.grad((out, lse), leaves, grads, retain_graph=True)
        backward = _backward_name()
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
    if not gpu_calls._forwards:
        return "CPU executor"
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
    if not gpu_calls._backwards:
        return "CPU executor"
    steps = next(reversed(gpu_calls._backwards.values())).ready.steps or ()
    names = Counter(step.planned.source.name for step in steps)
    return " + ".join(name for name in names if not name.startswith("list_")) or "nothing to do"


# ------------------------------------------------------------------------------------ processes

Kind = Literal["begun", "called", "refused", "failed", "ended"]


@dataclass(frozen=True)
class Message:
    """What a process has to say.

    Attributes:
        kind: Of what happened.
        pattern: The seed of the pattern.
        content: Of `called` the call's outcome; otherwise words.
        call: The call as a dictionary, where there is one.
    """

    kind: Kind
    pattern: int
    content: Any = None
    call: dict[str, Any] | None = None


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


# -------------------------------------------------------------------------------------- summary


class Summary:
    """What all calls showed."""

    def __init__(self) -> None:
        self.calls = 0
        self.deterministic = 0
        self.running: set[int] = set()
        self.patterns: set[int] = set()
        self.refused: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.groups: dict[tuple[str, str], dict[str, Any]] = defaultdict(
            lambda: {"calls": 0, "patterns": set(), "worst": {}}
        )

    def take(self, message: Message) -> None:
        """Adds what a process says."""
        number = message.pattern
        match message.kind:
            case "begun":
                self.running.add(number)
            case "ended":
                self.running.discard(number)
            case "refused":
                self.refused[message.content] += 1
            case "failed":
                self._fail(message, [message.content])
            case "called":
                outcome: Outcome = message.content
                self.calls += 1
                self.patterns.add(number)
                assert message.call is not None
                dtype = message.call["dtype"].removeprefix("torch.")
                for side, name in (("forward", outcome.forward), ("backward", outcome.backward)):
                    group = self.groups[side, name]
                    group["calls"] += 1
                    group["patterns"].add(number)
                    wanted = (lambda n: n.startswith("grad_")) if side == "backward" else None
                    for result, error in outcome.errors.items():
                        if (wanted is not None) == result.startswith("grad_") and result != "lse":
                            worst = group["worst"]
                            worst[dtype] = max(worst.get(dtype, 0.0), error)
                if outcome.differences:
                    self._fail(message, list(outcome.differences))

    def _fail(self, message: Message, words: list[str]) -> None:
        call = message.call
        self.failures.append({"seed": message.pattern, "differences": words, "call": call})
        text = "" if call is None else call["text"]
        print(
            f"seed {message.pattern}: {'; '.join(words)[:400]}\n    {text[:200]} {call}", flush=True
        )

    def document(self) -> dict[str, Any]:
        """As JSON."""
        groups = [
            {
                "side": side,
                "kernels": name,
                "patterns": len(group["patterns"]),
                "calls": group["calls"],
                "worst": {dtype: float(f"{e:.3g}") for dtype, e in sorted(group["worst"].items())},
            }
            for (side, name), group in sorted(
                self.groups.items(), key=lambda g: (g[0][0], -g[1]["calls"])
            )
        ]
        return {
            "calls": self.calls,
            "patterns": len(self.patterns),
            "refused": dict(self.refused),
            "not_ended": sorted(self.running),
            "failures": self.failures,
            "groups": groups,
        }


def table(document: dict[str, Any]) -> str:
    """The summary for people."""
    rows = [("", "kernels", "patterns", "calls", "worst error, as a share of the largest entry")]
    for group in document["groups"]:
        worst = ", ".join(f"{dtype} {error:.2g}" for dtype, error in group["worst"].items())
        rows.append((group["side"], group["kernels"], group["patterns"], group["calls"], worst))
    widths = [max(len(str(row[place])) for row in rows) for place in range(4)]
    lines = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, [*widths, 0], strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


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
