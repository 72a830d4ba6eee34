"""One pattern run on this machine: random input, the result judged by the oracle, and times."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patterncc.api import Attention
from patterncc.backward_trial import BackwardTrial, try_backward
from patterncc.call import Call
from patterncc.codegen import cpu
from patterncc.codegen.choice import lower_passes
from patterncc.codegen.facts.counts import count_tiles
from patterncc.codegen.facts.pair_counts import count_pairs, pair_program
from patterncc.codegen.gpu import config
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import ConfigError
from patterncc.programs import counted_text, starting_width, takes_patches
from patterncc.rivals import Dense, race_against, rivals_of
from patterncc.score_example import PLAIN_SCORES, Scores
from patterncc.signatures import resolve
from patterncc.timing import Timing, once
from patterncc.verdict import Oracle, Verdict, judge

DEFAULT_LENGTH = {"cpu": 4096, "cuda": 16384}
DEFAULT_TABLE_LENGTH = {"cpu": 2048, "cuda": 16384}  # of a pattern with tables
DEFAULT_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Tiles:
    """What all heads of one batch entry visit, in the executor's tiles."""

    block_q: int
    block_k: int
    pairs: int
    visited: int
    full: int
    all: int


@dataclass(frozen=True, slots=True)
class Trial:
    """What a run found.

    Attributes:
        call: The pattern and its sizes.
        batch: Batch size.
        layer: Layer number.
        problem: Type and head sizes.
        device: Where it ran, such as `cuda:0`.
        machine: What that is, in words.
        tiles: What was visited.
        first: Seconds of the first call, which lowers the pattern and compiles the kernel.
        timing: Of the calls after it.
        verdict: Whether the result is right.
        dense: Dense attention with the same mask, and causal attention where the pattern is causal.
        backward: What was found of the gradients, if they were asked for.
        scores: Score terms, and what they read.
    """

    call: Call
    batch: int
    layer: int
    problem: Problem
    device: str
    machine: str
    tiles: Tiles
    first: float
    timing: Timing
    verdict: Verdict
    dense: tuple[Dense, ...]
    backward: BackwardTrial | None = None
    scores: Scores = PLAIN_SCORES

    @property
    def right(self) -> bool:
        """Whether all results are right."""
        return self.verdict.right and (self.backward is None or self.backward.verdict.right)

    @property
    def density(self) -> float:
        """Visible pairs of all pairs."""
        return self.tiles.pairs / (self.call.heads * self.call.q_len * self.call.kv_len)

    @property
    def useful_flops(self) -> int:
        """Operations of the two products on visible pairs, forward."""
        both = self.problem.head_dim + self.problem.value_head_dim
        return 2 * self.batch * self.tiles.pairs * both

    @property
    def useful_backward_flops(self) -> int:
        """Operations of the five products on visible pairs, backward: scores and weights' gradients
        again, then the gradients of value, query and key."""
        dims = 3 * self.problem.head_dim + 2 * self.problem.value_head_dim
        return 2 * self.batch * self.tiles.pairs * dims


def choose_device(name: str | None) -> torch.device:
    """The device of a name; CUDA where there is one if none is named.

    Raises:
        ConfigError: There is no such device.
    """
    if name is None:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device is {name!r}", ("cpu", "cuda", "cuda:N")) from None
    if device.type not in DEFAULT_LENGTH:
        raise ConfigError(f"--device {name} has no executor", tuple(DEFAULT_LENGTH))
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if (device.index or 0) >= found:
            raise ConfigError(f"--device {name}: {found} CUDA devices were found")
        return torch.device("cuda", device.index or 0)
    return device


def run(
    call: Call,
    problem: Problem,
    device: torch.device,
    *,
    batch: int = 1,
    layer: int = 0,
    seed: int = 0,
    repeats: int | None = None,
    backward: bool = False,
    report: Callable[[str], None] = lambda _: None,
    scores: Scores = PLAIN_SCORES,
    deterministic: bool = True,
) -> Trial:
    """Runs attention under a pattern on random input, judges the result and times it.

    Args:
        call: The pattern and its sizes.
        problem: Type and head sizes.
        device: Where to run.
        batch: Batch size.
        layer: Layer number.
        seed: Of the input and of the rows that are checked.
        repeats: Timed calls; as many as fit in a second if not given.
        backward: Whether to judge and time the gradients, too.
        report: Told what is being done, for a person who waits.
        scores: Score terms, and what they read.
        deterministic: Must repeated calls give gradients of the same bits?

    Raises:
        UnsupportedError: The pattern or the type has no kernel there.
    """
    call.require_tables()
    tables: dict[str, Any] = {
        name: torch.from_numpy(table).to(device) for name, table in call.tables.items()
    }
    query, key, value = random_input(call, problem, device, batch, seed)
    attention = Attention(
        call.pattern, scores.terms, deterministic=deterministic, isolate=problem.isolates
    )
    real = torch.float64 if problem.dtype == "float64" else torch.float32
    terms = {
        name: torch.from_numpy(table).to(device, real) for name, table in scores.tables.items()
    }
    oracle = Oracle(
        scores.terms, scores.numbers, {name: table.cpu().double() for name, table in terms.items()}
    )

    options: dict[str, Any] = {
        "layer": layer,
        "layers": call.layers,
        "q_offset": call.q_offset,
        **tables,
        **scores.numbers,
    }
    given = options | terms

    def attend(*inputs: Tensor) -> Tensor:
        """Of query, key, value and the tables of the score terms, which all have gradients."""
        query, key, value, *tables = inputs
        own: dict[str, Any] = dict(zip(terms, tables, strict=True))
        out: Tensor = attention(query, key, value, **options, **own)
        return out

    with torch.inference_mode():
        report("compiling and running ...")
        first = once(lambda: attention(query, key, value, **given), device)
        out, lse = attention(query, key, value, return_lse=True, **given)
        report("checking against dense attention in float64 ...")
        verdict = judge(call, query, key, value, out, lse, layer=layer, seed=seed, oracle=oracle)
        del out, lse
        report("timing ...")
        timing, dense = race_against(
            lambda: attention(query, key, value, return_lse=True, **given),
            rivals_of(call, device, layer, plain=scores.terms.plain),
            lambda rival: lambda: rival(query, key, value),
            device,
            repeats,
        )
    gradients = None
    if backward:
        gradients = try_backward(
            attend,
            call,
            (query, key, value),
            layer=layer,
            seed=seed,
            repeats=repeats,
            report=report,
            tables=tuple(terms.values()),
            oracle=oracle,
        )
    return Trial(
        call,
        batch,
        layer,
        problem,
        str(device),
        machine_name(device),
        _count(call, problem, device, layer),
        first,
        timing,
        verdict,
        dense,
        gradients,
        scores,
    )


def random_input(
    call: Call, problem: Problem, device: torch.device, batch: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value from a normal distribution, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, problem.dtype)

    def draw(heads: int, length: int, dim: int) -> Tensor:
        numbers = torch.randn(batch, heads, length, dim, generator=generator, dtype=torch.float32)
        return numbers.to(device, dtype)

    return (
        draw(call.heads, call.q_len, problem.head_dim),
        draw(call.kv_heads, call.kv_len, problem.head_dim),
        draw(call.kv_heads, call.kv_len, problem.value_head_dim),
    )


def machine_name(device: torch.device) -> str:
    """A device in words: `NVIDIA H200`, or the processor's name and the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def _count(call: Call, problem: Problem, device: torch.device, layer: int) -> Tiles:
    """Tiles and pairs of all heads in the tiles of the device's executor."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        vendor = "hip:" if torch.version.hip else f"cuda:{major}{minor}"
        shape = config.default_config(problem, vendor)
        sizes = tuple((name, call.sizes[name]) for name in resolve(call.pattern.structure).sizes)
        patches = takes_patches(problem.terms)
        numbers = tuple(call.pattern.defaults.values())  # all: `Call.of` checks it
        text = counted_text(call.pattern.structure, sizes, numbers)
        width = starting_width(text, shape.block_q, shape.block_k, sizes, patches)
        shape = config.narrowed(shape, width)
    else:
        shape = cpu.default_config()
    passes = lower_passes(
        call.pattern,
        shape.block_q,
        shape.block_k,
        sizes=call.sizes,
        within=call.within,
        transposed=False,
        gather=device.type == "cuda",
        patches=device.type == "cuda" and takes_patches(problem.terms),
    )
    pairs = pair_program(call.pattern, call.sizes, within=call.within, transposed=False)
    visible = full = visited = 0
    heads = range(call.heads) if call.differs_by_head else [0]
    share = call.heads // len(heads)
    for head in heads:
        env = call.env(head, layer)
        visible += share * int(count_pairs(pairs, env).rows.sum())
        for program in passes:
            counts = count_tiles(program, env)
            full += share * counts.full
            visited += share * counts.visited
    rows, columns = -(-call.q_len // shape.block_q), -(-call.kv_len // shape.block_k)
    every = call.heads * rows * columns
    return Tiles(shape.block_q, shape.block_k, visible, visited, full, every)
