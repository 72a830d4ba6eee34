"""One pattern run on this machine: random input, the result judged by the oracle, and times."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from patterncc.api import Attention
from patterncc.call import Call
from patterncc.codegen import cpu
from patterncc.codegen.choice import lower_passes
from patterncc.codegen.facts.counts import count_tiles
from patterncc.codegen.facts.pair_counts import count_pairs, pair_program
from patterncc.codegen.gpu import config
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import ConfigError
from patterncc.explain import is_causal
from patterncc.timing import Timing, once, race
from patterncc.verdict import Verdict, judge, mask_rows

DEFAULT_LENGTH = {"cpu": 4096, "cuda": 16384}
DEFAULT_TABLE_LENGTH = {"cpu": 2048, "cuda": 16384}  # of a pattern with tables
DEFAULT_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}
MOST_MASK = {"cpu": 1 << 27, "cuda": 1 << 31}  # bytes of a dense mask that is worth a comparison


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
class Dense:
    """A dense attention beside which the pattern is timed.

    Attributes:
        name: What it is.
        timing: `None` where it was not run.
        skipped: Why it was not.
    """

    name: str
    timing: Timing | None
    skipped: str = ""


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

    @property
    def density(self) -> float:
        """Visible pairs of all pairs."""
        return self.tiles.pairs / (self.call.heads * self.call.q_len * self.call.kv_len)

    @property
    def useful_flops(self) -> int:
        """Operations of the two products on visible pairs, forward."""
        both = self.problem.head_dim + self.problem.value_head_dim
        return 2 * self.batch * self.tiles.pairs * both


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
    report: Callable[[str], None] = lambda _: None,
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
        report: Told what is being done, for a person who waits.

    Raises:
        UnsupportedError: The pattern or the type has no kernel there.
    """
    call.require_tables()
    tables: dict[str, Any] = {
        name: torch.from_numpy(table).to(device) for name, table in call.tables.items()
    }
    query, key, value = random_input(call, problem, device, batch, seed)
    attention = Attention(call.pattern)

    def attend() -> tuple[Tensor, Tensor]:
        out, lse = attention(
            query,
            key,
            value,
            return_lse=True,
            layer=layer,
            layers=call.layers,
            q_offset=call.q_offset,
            **tables,
        )
        return out, lse

    with torch.inference_mode():
        report("compiling and running ...")
        first = once(attend, device)
        out, lse = attend()
        report("checking against dense attention in float64 ...")
        verdict = judge(call, query, key, value, out, lse, layer=layer, seed=seed)
        del out, lse
        report("timing ...")
        rivals = [_masked(call, query, key, value, layer)]
        if is_causal(call):
            rivals.append(_causal(call, query, key, value))
        timing, dense = _times(attend, rivals, device, repeats)
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
    return f"{name}, {torch.get_num_threads()} threads"


def _count(call: Call, problem: Problem, device: torch.device, layer: int) -> Tiles:
    """Tiles and pairs of all heads in the tiles of the device's executor."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        vendor = "hip:" if torch.version.hip else f"cuda:{major}{minor}"
        shape = config.default_config(problem, vendor)
    else:
        shape = cpu.default_config()
    passes = lower_passes(
        call.pattern,
        shape.block_q,
        shape.block_k,
        sizes=call.sizes,
        within=call.within,
        transposed=False,
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


# ------------------------------------------------------------------------ dense attention


@dataclass(frozen=True, slots=True)
class _Rival:
    """A dense attention to run, or why not."""

    name: str
    run: Callable[[], Tensor] | None
    skipped: str = ""


def _masked(call: Call, query: Tensor, key: Tensor, value: Tensor, layer: int) -> _Rival:
    """PyTorch's attention under the same mask, as a boolean tensor."""
    name = "dense, same mask"
    heads = call.heads if call.differs_by_head else 1
    size = heads * call.q_len * call.kv_len
    most = MOST_MASK[query.device.type]
    if size > most:
        return _Rival(name, None, f"its mask takes {size / 2**30:.3g} GiB, over {most / 2**30:.3g}")
    rows = torch.arange(call.q_len, device=query.device)
    masks = [mask_rows(call, call.env(head, layer), rows) for head in range(heads)]
    mask = torch.stack(masks)[None]
    return _Rival(name, _dense(query, key, value, mask, causal=False))


def _causal(call: Call, query: Tensor, key: Tensor, value: Tensor) -> _Rival:
    """PyTorch's causal attention, which computes more than the pattern asks for."""
    name = "dense, causal"
    if call.q_len != call.kv_len or call.q_offset:
        return _Rival(name, None, "the rows are not all positions from 0")
    return _Rival(name, _dense(query, key, value, None, causal=True))


def _dense(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool
) -> Callable[[], Tensor]:
    grouped = query.shape[1] != key.shape[1]
    return partial(
        scaled_dot_product_attention,
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal,
        enable_gqa=grouped,
    )


def _times(
    attend: Callable[[], object],
    rivals: Sequence[_Rival],
    device: torch.device,
    repeats: int | None,
) -> tuple[Timing, tuple[Dense, ...]]:
    """Times the pattern and its rivals in turn; a rival that runs out of memory drops out."""
    runs: dict[str, Callable[[], object]] = {}
    skipped = {rival.name: rival.skipped for rival in rivals}
    for rival in rivals:
        if rival.run is None:
            continue
        try:
            rival.run()
        except torch.OutOfMemoryError:
            skipped[rival.name] = "it ran out of memory"
        else:
            runs[rival.name] = rival.run
    timing, *others = race([attend, *runs.values()], device, repeats)
    found = dict(zip(runs, others, strict=True))
    return timing, tuple(Dense(name, found.get(name), why) for name, why in skipped.items())
