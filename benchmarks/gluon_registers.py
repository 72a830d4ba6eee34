"""What registers Gluon's forward kernels of the library take, and what their masks cost.

    python benchmarks/gluon_registers.py --out benchmarks/results/gluon_registers.json

Compiles every pattern of the library that Gluon has kernels for, whatever the choice of an emitter
thinks of its mask, in the tile shapes that untuned calls take, and masks that are more than limits
in three shapes at two head dimensions. Needs no GPU; an hour on one core. `--only NAME` compiles
some of them, `--resume` goes on where a file ends.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import triton
from triton import knobs

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import KernelConfig, default_config
from patterncc.codegen.gpu.emitter_choice import emitter_of
from patterncc.codegen.gpu.gluon.reasons import reason_against
from patterncc.codegen.gpu.gluon.steady_writer import keeps_peak
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.launch import compile_for
from patterncc.codegen.gpu.mask_source import beyond_limits
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.problem import Problem
from patterncc.dsl import library, load
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Const, FloorDiv, Mod, Predicate, variables, walk
from patterncc.dsl.pattern import Pattern

SIZES = {"heads": 8, "kv_heads": 2, "layers": 4}
SHAPES = {
    "64x64": KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon"),
    "128x128": KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon"),
    "64x128": KernelConfig(64, 128, 4, 2, "descriptor", emitter="gluon"),
}


def mask_costs(mask: Predicate, text: str) -> dict[str, int]:
    """Numbers of a mask that may say how many registers it takes."""
    divisions = {
        node
        for node in walk(mask)
        if isinstance(node, (FloorDiv, Mod)) and "k" in variables(node.value)
    }
    slow = [
        node
        for node in divisions
        if not (isinstance(node.divisor, Const) and node.divisor.value.bit_count() == 1)
    ]
    scores = re.findall(r'scores = tl\.where\((.*), scores, float\("-inf"\)\)', text)
    expression = scores[0] if scores else ""
    rows = set(re.findall(r"\brow_term_\w+", expression))
    keys = set(re.findall(r"\bkey_term_\w+", expression))
    return {
        "divisions": len(divisions),
        "slow_divisions": len(slow),
        "tables": sum(type(node).__name__ in ("Entry", "Segment") for node in walk(mask)),
        "comparisons": len(re.findall(r" (?:<=?|==|!=) ", expression)),
        "connections": len(re.findall(r" [&|] |~|tl\.where", expression)),
        "row_vectors": len(rows),
        "key_vectors": len(keys),
        "limits": len(re.findall(r"setp", text.split("scores = tl.inline_asm")[1].split("\n")[0]))
        if "scores = tl.inline_asm" in text
        else 0,
    }


def loops(code: str, kinds: Collection[str]) -> dict[str, tuple[int, int]]:
    """Instructions of the longest loop of masked tiles, of the shortest of full tiles, and of the
    longest of the warp that loads, each with the spilled numbers that it reads.

    Args:
        code: Machine code as text.
        kinds: Of the sweeps, `partial` and `full`.
    """
    lines = code.splitlines()
    labels = {line.strip()[:-1]: number for number, line in enumerate(lines) if line.endswith(":")}
    computing, loading = [], []
    for number, line in enumerate(lines):
        branch = re.search(r"\bBRA\b.*?(\.L_x_\d+)", line)
        start = labels.get(branch[1], number) if branch else number
        body = "\n".join(lines[start : number + 1])
        # Waits stand behind the end and branch back, and warps that are done to their start.
        if start >= number or "EXIT" in body or "USETMAXREG" in body:
            continue
        found = (len(re.findall(r"/\*[0-9a-f]{4,}\*/", body)), body.count("LDL"))
        if "HGMMA" in body:
            # In Gluon's kernels a warp that multiplies copies nothing, but when it computes again.
            if "UTMALDG" not in body or "USETMAXREG" not in code:
                computing.append(found)
        elif "UTMALDG" in body:
            loading.append(found)
    named = {}
    if "partial" in kinds and computing:
        named["masked"] = max(computing)
    if "full" in kinds and computing:
        named["full"] = min(computing)
    if loading:
        named["load"] = max(loading)
    return named


def compiled(source: KernelSource, program: BlockProgram) -> dict[str, Any]:
    """One kernel."""
    with tempfile.TemporaryDirectory() as folder:
        kernel = compile_for(source, "cuda:90", folder=Path(folder))
        path = Path(folder) / "kernel.cubin"
        cubin = kernel.stages["cubin"]
        assert isinstance(cubin, bytes)
        path.write_bytes(cubin)
        command = [knobs.nvidia.nvdisasm.path, "-c", str(path)]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "sweeps": len(program.forward),
        "registers": kernel.registers,
        "spilled": kernel.spilled,
        "loops": loops(code, {sweep.kind for sweep in program.forward}),
        "mask": mask_costs(program.mask, source.text),
    }


def patterns(only: Sequence[str]) -> Iterator[tuple[str, Pattern]]:
    """The library, with a number where one has no default."""
    for name in library.names():
        if not only or name in only:
            yield name, load(name, n=64) if name == "prefix" else load(name)


Kernels: TypeAlias = "Iterator[tuple[dict[str, Any], KernelSource, BlockProgram]]"


def kernels(only: Sequence[str]) -> Kernels:
    """All that is compiled: what it is, its source and its program."""
    for head_dim, names in ((128, ("64x64", "128x128")), (64, ("64x128",))):
        yield from _of(only, head_dim, names)
    for head_dim, names in ((128, ("64x128",)), (64, ("64x64", "128x128"))):
        for row, source, program in _of(only, head_dim, names):
            if row["emitter"] == "gluon" and beyond_limits(program.mask):
                yield row, source, program


def _of(only: Sequence[str], head_dim: int, names: Sequence[str]) -> Kernels:
    problem = Problem("bfloat16", head_dim, head_dim)
    for name, pattern in patterns(only):
        for config in (default_config(problem, "cuda:90"), *(SHAPES[each] for each in names)):
            tile = config.block_q, config.block_k
            try:
                passes = lower_passes(pattern, *tile, sizes=SIZES, within=True, transposed=False)
            except UnsupportedError:
                continue
            for number, program in enumerate(passes):
                if reason_against(program, problem) is not None:
                    continue
                gluon = config.emitter == "gluon"
                for peaks in (
                    ("each", "kept") if gluon and keeps_peak(program, problem) else ("each",)
                ):
                    row = {
                        "pattern": name,
                        "pass": number,
                        "head_dim": head_dim,
                        "emitter": config.emitter,
                        "tile": f"{config.block_q}x{config.block_k}",
                        "peaks": peaks,
                    }
                    source = emitter_of(config)(
                        program,
                        problem,
                        replace(config, peaks=peaks) if gluon else config,
                        resumes=number > 0,
                        hands_on=number < len(passes) - 1,
                    )
                    yield row, source, program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--resume", action="store_true", help="keep what the file has")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.resume and options.out.exists():
        rows = json.loads(options.out.read_text())["kernels"]
    keys = ("pattern", "pass", "head_dim", "emitter", "tile", "peaks")
    done = {tuple(row[key] for key in keys) for row in rows}
    for row, source, program in kernels(options.only):
        if tuple(row[key] for key in keys) in done:
            continue
        rows.append(row | compiled(source, program))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        record = {
            "what": "Gluon's forward kernels of the library and Triton's by default, compiled for "
            "cuda:90: registers, bytes spilled, what their masks are, and of loops the "
            "instructions and the spilled numbers that they read.",
            "versions": {"triton": triton.__version__},
            "kernels": rows,
        }
        lines = ",\n".join(json.dumps(each) for each in rows)
        text = json.dumps(record | {"kernels": []}, indent=1)
        options.out.write_text(text.replace("[]", f"[\n{lines}\n]") + "\n")


if __name__ == "__main__":
    main()
