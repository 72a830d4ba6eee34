"""What compute-sanitizer's racecheck says of the kernels for Hopper GPUs.

    python -m tests.gpu.racecheck

Makes small calls of every kind of kernel below compute-sanitizer, looks up in the machine code what
each report is about, and prints a line for each. The byte by which Triton's `warp_specialize` tells
a warp what to do is known to be reported, in a kernel of Triton's own as well (docs/gluon.md,
Tests); anything else ends with exit status 1. Takes a minute on an H200.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu import one_pass_choice
from patterncc.codegen.gpu.backward import Backward
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.ir import Passes
from patterncc.codegen.score.values import NO_VALUES, ScoreValues
from patterncc.dsl import load
from patterncc.dsl.score.terms import PLAIN, load_terms
from tests.codegen.machine_code import disassemble, instruction_at

WIDE = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")
SMALL = KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon")
LONG = KernelConfig(64, 128, 4, 2, "descriptor", emitter="gluon")
DOCUMENTS = "pattern p(doc: segments): causal and doc[q] == doc[k]"
GATHERED = "pattern p(v: bool[*], s: bool[*]): causal and (v[k] or s[q - k])"

APART = """\
from triton.experimental import gluon
from triton.experimental.gluon import language as tl


@gluon.jit
def one(place):
    tl.store(place, 1)


@gluon.jit
def other(place):
    tl.store(place + 1, 2)


@gluon.jit
def apart(place):
    tl.warp_specialize([(one, (place,)), (other, (place,))], [1], [24])
"""
"""A kernel whose warps part, and which has no shared memory of its own."""


# ------------------------------------------------------------------------------------ the calls


def _parts_alone(folder: Path) -> None:
    """The kernel of `APART`."""
    path = folder / "apart.py"
    path.write_text(APART)
    spec = importlib.util.spec_from_file_location("apart", path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = torch.zeros(2, dtype=torch.int32, device="cuda")
    module.apart[(4,)](written, num_warps=4, maxnreg=128)
    assert written.tolist() == [1, 2]


def _tensors(
    length: int, head_dim: int = 128, heads: int = 2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    query, key, value = torch.randn(
        3, 1, heads, length, head_dim, device="cuda", dtype=torch.bfloat16
    )
    return query, key, value


def _forward(
    text: str,
    config: KernelConfig | None,
    length: int = 300,
    head_dim: int = 128,
    score: str | None = None,
    tables: dict[str, torch.Tensor] | None = None,
) -> None:
    pattern, terms = load(text), load_terms(score, "sinks[head]") if score else PLAIN

    def lowered(block_q: int, block_k: int) -> tuple[Passes]:
        return (lower_passes(pattern, block_q, block_k, within=True, transposed=False),)

    values = ScoreValues({}, {"sinks": torch.zeros(2, device="cuda")}) if score else NO_VALUES
    out, _ = Forward(lowered, config=config, terms=terms)(
        *_tensors(length, head_dim),
        env={"q_offset": 0},
        scale=0.1,
        tables=tables or {},
        score_values=values,
    )
    assert out.isfinite().all()


def _backward(deterministic: bool) -> None:
    pattern = load("causal")

    def lowered(block_q: int, block_k: int) -> tuple[Passes]:
        return (lower_passes(pattern, block_q, block_k, within=True),)

    tensors = _tensors(300)
    options: dict[str, Any] = {"env": {"q_offset": 0}, "scale": 0.1}
    out, lse = Forward(lowered, config=WIDE)(*tensors, **options)
    one_pass_choice.LEAST_STEPS = 0  # short calls, too
    backward = Backward(lowered, deterministic=deterministic)
    gradients = backward(torch.randn_like(out), None, *tensors, out, lse, **options)
    assert all(each is not None and each.isfinite().all() for each in gradients[:3])


def _calls(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Small calls of each kind of kernel, named."""
    bounds = torch.tensor([0, 50, 51, 140, 300], dtype=torch.int32, device="cuda")
    verticals = torch.arange(300, device="cuda") % 71 < 2
    slashes = torch.arange(300, device="cuda") % 90 < 5
    yield "warps that part, Triton's own", partial(_parts_alone, folder)
    for name, config, head_dim in (
        ("128x128", WIDE, 128),
        ("64x64", SMALL, 128),
        ("64x128", LONG, 64),
    ):
        options: dict[str, Any] = {"head_dim": head_dim}
        yield f"{name}, causal", partial(_forward, "causal", config, **options)
        capped = partial(_forward, "causal", config, score="softcap(score, 30)", **options)
        yield f"{name}, score terms", capped
    for name, config in (("128x128", WIDE), ("64x64", SMALL)):
        tables = {"doc": bounds}
        yield f"{name}, documents", partial(_forward, DOCUMENTS, config, tables=tables)
    yield "64x64, in classes", partial(_forward, "dilated(40, 8)", SMALL, 3000)
    yield "128x128, two passes", partial(_forward, "window(100) or dilated(40, 8)", WIDE, 1100)
    tables = {"v": verticals, "s": slashes}
    yield "Triton, gathered keys", partial(_forward, GATHERED, None, tables=tables)
    yield "gradients, two kernels", partial(_backward, True)
    yield "gradients, one pass", partial(_backward, False)


def make_calls(first: int, step: int) -> None:
    """Makes a share of the calls, each named before on standard output."""
    with tempfile.TemporaryDirectory() as folder:
        for name, call in islice(_calls(Path(folder)), first, None, step):
            print(f"CALL {name}", flush=True)
            call()
            torch.cuda.synchronize()


# ------------------------------------------------------------------------------------ the reports


@dataclass(frozen=True)
class Access:
    """An access that racecheck names: of a function of a file, at an address in it."""

    kind: str
    function: str
    address: int
    file: str


@dataclass(frozen=True)
class Report:
    """Accesses of which racecheck sees no order, and the call that made them."""

    call: str
    accesses: tuple[Access, ...]


_CALL = re.compile(r"^CALL (.*)$", re.MULTILINE)
_ACCESS = re.compile(r"(Read|Write) access at (\w+)\+0x([0-9a-f]+)(?: in (\S+?):\d+)?")


def reports(output: str) -> list[Report]:
    """The reports in what compute-sanitizer printed."""
    found: list[Report] = []
    call, accesses = "", list[Access]()

    def end() -> None:
        if accesses:
            found.append(Report(call, tuple(accesses)))
            accesses.clear()

    for line in output.splitlines():
        if named := _CALL.match(line):
            end()
            call = named[1]
        elif access := _ACCESS.search(line):
            if "Race reported" in line:
                end()
            kind, function, address, file = access.groups()
            accesses.append(Access(kind, function, int(address, 16), Path(file or "").name))
        else:
            end()
    end()
    return found


def is_dispatch(reads: Sequence[str], writes: Sequence[str]) -> bool:
    """Are these instructions those of the bytes by which `warp_specialize` tells warps what to do?

    A byte is read by the number of the warp, of which the first four are told nothing; the first
    warps write all bytes at once, before the work and after it.
    """
    read = [re.match(r"LDS\.U8 .*\+0x([0-9a-f]+)\]", each) for each in reads]
    written = [re.match(r"STS(?:\.\d+)? .*\+0x([0-9a-f]+)\]", each) for each in writes]
    if not read or not written:
        return False
    bytes_read = {int(place[1], 16) + 4 if place else None for place in read}
    bytes_written = {int(place[1], 16) if place else None for place in written}
    return None not in bytes_read and len(bytes_read) == 1 and bytes_read == bytes_written


def machine_codes(cache: Path, folder: Path) -> dict[tuple[str, str], str]:
    """The machine code of each kernel in Triton's cache, by file and name of its function."""
    found: dict[tuple[str, str], str] = {}
    for cubin in cache.rglob("*.cubin"):
        text = cubin.with_suffix(".ptx").read_text()
        for file in set(re.findall(r'\.file\s+\d+ "(?:[^"]*/)?([^"/]+\.py)"', text)):
            found[file, cubin.stem] = disassemble(cubin.read_bytes(), folder)
    return found


def checked(jobs: int, environment: dict[str, str]) -> list[str]:
    """What compute-sanitizer prints of all calls, shared among so many processes."""
    command = ["compute-sanitizer", "--tool", "racecheck", "--racecheck-report", "analysis"]
    command += [sys.executable, "-m", "tests.gpu.racecheck", "--share"]
    processes = [
        subprocess.Popen(
            [*command, str(number), str(jobs)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for number in range(jobs)
    ]
    return [process.communicate()[0] for process in processes]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=4, help="processes that share the calls")
    words = "only make every STEPth call from FIRST on"
    parser.add_argument("--share", type=int, nargs=2, metavar=("FIRST", "STEP"), help=words)
    options = parser.parse_args()
    if options.share:
        make_calls(*options.share)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        outputs = checked(options.jobs, {**os.environ, "TRITON_CACHE_DIR": str(cache)})
        codes = machine_codes(cache, Path(folder))
        failed = 0
        for output in outputs:
            if "RACECHECK SUMMARY" not in output or "Traceback" in output:
                print(output)
                failed += 1
            print(*_CALL.findall(output), sep="; ")
            for report in reports(output):
                found: dict[str, list[str]] = {"Read": [], "Write": []}
                for access in report.accesses:
                    code = codes.get((access.file, access.function))
                    found[access.kind].append(
                        instruction_at(code, access.address) if code else str(access)
                    )
                known = is_dispatch(found["Read"], found["Write"])
                failed += not known
                print(f"  {report.call}: {'dispatch of warps' if known else 'A HAZARD'}: {found}")
        print(f"{failed} failures" if failed else "no hazard but the dispatch of warps")
        return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
