"""Tiles that are patches of a raster against consecutive tiles, on one GPU.

    python benchmarks/gpu_patches.py [--only NAME,...] [--flex] [--json FILE]

For each pattern, in both kinds of tiles with the configs that calls start from: the forward and the
gradients of query, key and value in milliseconds, pairs of visited tiles for each visible one, and
the largest error of output and gradients against float64 on one head, checked before anything is
timed. `--flex` adds FlexAttention's forward, whose compilation takes a minute for each pattern.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from rich.console import Console
from rich.table import Table

from patterncc.call import Call
from patterncc.codegen import reference
from patterncc.codegen.choice import lower_passes, tiling_names
from patterncc.codegen.facts.counts import count_tiles
from patterncc.codegen.facts.pair_counts import count_pairs, pair_program
from patterncc.codegen.gpu.backward import Backward
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.ir import Passes
from patterncc.codegen.judging import dense_gradients, distance
from patterncc.dsl import load

HEADS, HEAD_DIM = 16, 128
TILE = 64  # of the configs that forward calls start from, for the waste


@dataclass(frozen=True)
class Case:
    """A pattern at the length of one raster.

    Attributes:
        text: The pattern.
        length: Tokens.
        layer: For patterns that differ by layer.
    """

    text: str
    length: int
    layer: int = 0


CASES = {
    "neighborhood 13x13 of 64x64": Case("neighborhood", 4096),
    "neighborhood 7x7 of 128x128": Case("neighborhood(128, 128, 7)", 16384),
    "swin of 56x56": Case("swin", 3136),
    "swin of 56x56, shifted": Case("swin", 3136, 1),
    "neighborhood_3d of 16x30x40": Case("neighborhood_3d", 19200),
}


@dataclass(frozen=True)
class Row:
    """One pattern in one kind of tiles.

    Attributes:
        name: Of the case.
        tiles: Their kind, for forward kernels.
        forward, gradients: Milliseconds, medians.
        waste: Pairs of visited tiles for each visible one, forward.
        out_error, gradient_error: Largest differences from float64, of the gradients in units of
            the largest entry.
    """

    name: str
    tiles: str
    forward: float
    gradients: float
    waste: float
    out_error: float
    gradient_error: float


def lowered(case: Case, block_q: int, block_k: int, *, patches: bool, both: bool) -> Passes:
    """The passes of a case in tiles of a shape."""
    return lower_passes(
        load(case.text), block_q, block_k, within=True, transposed=both, patches=patches
    )


def measure(name: str, case: Case, *, patches: bool) -> Row:
    """Checks and times one case in one kind of tiles."""
    pattern = load(case.text)
    torch.manual_seed(0)
    shape = (1, HEADS, case.length, HEAD_DIM)
    query, key, value, grad_out = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4)
    )
    numbers = {each.name: each.value for each in pattern.numbers if each.value is not None}
    env = {"q_offset": 0, "layer": case.layer, **numbers}
    scale = 1 / math.sqrt(HEAD_DIM)

    def rows_only(block_q: int, block_k: int) -> Sequence[Passes]:
        return [lowered(case, block_q, block_k, patches=patches, both=False)]

    def both_ways(block_q: int, block_k: int) -> Sequence[Passes]:
        return [lowered(case, block_q, block_k, patches=patches, both=True)]

    forward, backward = Forward(rows_only), Backward(both_ways, lower_rows=rows_only)

    def attend() -> tuple[torch.Tensor, torch.Tensor]:
        return forward(query, key, value, env=env, scale=scale)

    out, lse = attend()

    def differentiate() -> tuple[Any, ...]:
        given = (grad_out, None, query, key, value, out, lse)
        return tuple(backward(*given, env=env, scale=scale, needs_query=True, needs_key_value=True))

    errors = _errors(pattern, env, scale, (query, key, value, grad_out), (out, *differentiate()))
    forward_time, gradient_time = (
        float(triton.testing.do_bench(run, warmup=20, rep=100, return_mode="median"))
        for run in (attend, differentiate)
    )
    passes = rows_only(TILE, TILE)[0]
    waste = _waste(case, passes)
    return Row(name, tiling_names(passes), forward_time, gradient_time, waste, *errors)


def _errors(
    pattern: Any,
    env: dict[str, int],
    scale: float,
    given: tuple[torch.Tensor, ...],
    found: tuple[torch.Tensor, ...],
) -> tuple[float, float]:
    """The largest differences of one head from dense attention in float64."""
    query, key, value, grad_out = (tensor[0, 3].double() for tensor in given)
    places = torch.arange(len(query), device="cuda")
    with torch.device("cuda"):
        scalars = {**env, "q_len": len(query), "kv_len": len(query), "head": 3, "kv_head": 3}
        allowed = reference.allowed(pattern.body, places[:, None], places[None, :], scalars, {})

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~allowed, -math.inf)
        return scores.softmax(-1) @ v

    wanted = dense_gradients(query, key, value, grad_out, attention)
    out_error = distance(found[0][0, 3].double(), attention(query, key, value))
    gradient_error = max(
        distance(one[0, 3].double(), other) / float(other.abs().max())
        for one, other in zip(found[1:4], wanted, strict=True)
    )
    assert out_error < 0.02 and gradient_error < 0.03, (out_error, gradient_error)
    return out_error, gradient_error


def _waste(case: Case, passes: Passes) -> float:
    call = Call.of(load(case.text), case.length, layers=2)
    env = call.env(0, case.layer)
    visible = count_pairs(pair_program(call.pattern, call.sizes, transposed=False), env).rows.sum()
    area = sum(count_tiles(each, env).visited * each.block_q * each.block_k for each in passes)
    return area / int(visible)


def flex(case: Case) -> float:
    """FlexAttention's forward in milliseconds, compiled, with its block mask made beforehand."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    pattern = load(case.text)
    numbers = {each.name: each.value for each in pattern.numbers if each.value is not None}
    scalars = {**numbers, "layer": case.layer, "q_len": case.length, "kv_len": case.length}

    def visible(batch: Any, head: Any, q: Any, k: Any) -> Any:
        return reference.allowed(pattern.body, q, k, scalars, {})

    mask = create_block_mask(visible, None, None, case.length, case.length, device="cuda")
    attend = torch.compile(flex_attention, fullgraph=True)
    shape = (1, HEADS, case.length, HEAD_DIM)
    query, key, value = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))

    def run() -> Any:
        return attend(query, key, value, block_mask=mask)

    return float(triton.testing.do_bench(run, warmup=20, rep=100, return_mode="median"))


def rows(names: Sequence[str]) -> Iterator[Row]:
    """All measurements, each printed when it is there."""
    for name in names:
        for patches in (False, True):
            row = measure(name, CASES[name], patches=patches)
            print(row, flush=True)
            yield row


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(CASES), help="cases, separated by commas")
    parser.add_argument("--flex", action="store_true", help="measure FlexAttention, too")
    parser.add_argument("--json", type=Path, help="where to keep the results")
    options = parser.parse_args()
    names = [name for name in CASES if any(name.startswith(n) for n in options.only.split(","))]
    found = list(rows(names))
    peers = {name: flex(CASES[name]) for name in names} if options.flex else {}
    table = Table(title=f"{HEADS} heads, head_dim {HEAD_DIM}, bf16")
    for column in ("pattern", "tiles", "forward ms", "gradients ms", "waste", "FlexAttention ms"):
        table.add_column(column, justify="left" if column in ("pattern", "tiles") else "right")
    for row in found:
        peer = f"{peers[row.name]:.3f}" if row.name in peers else "-"
        times = (f"{row.forward:.3f}", f"{row.gradients:.3f}", f"{row.waste:.2f}", peer)
        table.add_row(row.name, row.tiles, *times)
    Console(width=130).print(table)
    machine = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if options.json:
        kept = {"machine": machine, "rows": [asdict(row) for row in found], "flex": peers}
        options.json.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
