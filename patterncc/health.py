"""What works on this machine: versions, known traps, devices that are tried out, the cache."""

import importlib.util
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from patterncc import __version__, settings
from patterncc.api import Attention
from patterncc.call import Call
from patterncc.codegen import cpu
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.compilation import Compilation
from patterncc.dsl import load
from patterncc.dsl.errors import PatternccError
from patterncc.trial import machine_name, random_input
from patterncc.verdict import judge

PACKAGES = (
    "torch",
    "triton",
    "islpy",
    "numpy",
    "lark",
    "networkx",
    "sympy",
    "optuna",
    "rich",
    "platformdirs",
    "matplotlib",
)
OPTIONAL = {"matplotlib": "pictures in files: pip install 'patterncc[plot]'"}
TARGET = "cuda:90"  # what is compiled to see whether kernels for absent devices can be

State = Literal["ok", "missing", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: What kind of thing: `versions`, `devices`, `compilers`, `cache`, `environment`.
        name: What it is.
        state: `missing` and `warning` leave patterncc usable.
        detail: In words.
    """

    topic: str
    name: str
    state: State
    detail: str


def examine() -> Iterator[Finding]:
    """Looks at one thing after the other."""
    yield from _versions()
    yield from _traps()
    yield from _devices()
    yield _compiler()
    yield from _cache()
    yield from _environment()


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "patterncc", "ok", f"{__version__} in {Path(__file__).parent}")
    system = f"{sys.executable} on {platform.system()} {platform.machine()}"
    yield Finding("versions", "Python", "ok", f"{platform.python_version()}, {system}")
    for package in PACKAGES:
        try:
            yield Finding("versions", package, "ok", metadata.version(package))
        except metadata.PackageNotFoundError:
            use = OPTIONAL.get(package)
            if package == "triton":
                use = "kernels for GPUs: there is no wheel for every system"
            yield Finding("versions", package, "missing" if use else "failed", use or "is required")


def _traps() -> Iterator[Finding]:
    """Pairs of versions that are known not to work together."""
    if importlib.util.find_spec("triton") is None:
        return
    triton, numpy = _release("triton"), _release("numpy")
    if triton < (3, 7) and numpy >= (2, 4):
        detail = (
            "before 3.7, Triton's interpreter (TRITON_INTERPRET=1) fails with numpy 2.4 or newer; "
            "kernels on GPUs do not. Install numpy<2.4 or triton>=3.7"
        )
        yield Finding("versions", "triton with numpy", "warning", detail)


def _release(package: str) -> tuple[int, ...]:
    numbers = metadata.version(package).split("+")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())


def _devices() -> Iterator[Finding]:
    name = f"{machine_name(torch.device('cpu'))}; kernel: {cpu.cpu_kernel_name()}"
    yield _tried("cpu", name, partial(_attend, torch.device("cpu"), "float32"))
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "no device was found" if built else "this PyTorch is built for the CPU alone"
        yield Finding("devices", "cuda", "missing", why)
        return
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        major, minor = torch.cuda.get_device_capability(device)
        size = torch.cuda.get_device_properties(device).total_memory / 2**30
        name = f"{machine_name(device)}, capability {major}.{minor}, {size:.0f} GiB"
        yield _tried(f"cuda:{index}", name, partial(_attend, device, "bfloat16"))


def _attend(device: torch.device, dtype: Literal["float32", "bfloat16"]) -> str:
    """Runs a small attention, and says what is wrong with the result; "" for nothing."""
    call = Call.of(load("streaming", sinks=4, window=40), 200, heads=2)
    problem = Problem(dtype, 64, 64)
    query, key, value = random_input(call, problem, device, 1, 0)
    with torch.inference_mode():
        out, lse = Attention(call.pattern)(query, key, value, return_lse=True)
    verdict = judge(call, query, key, value, out, lse)
    return "" if verdict.right else f"wrong by {verdict.error:.2g}, lse by {verdict.lse_error:.2g}"


def _tried(name: str, what: str, attempt: Callable[[], str]) -> Finding:
    try:
        wrong = attempt()
    except (PatternccError, RuntimeError, OSError) as error:
        wrong = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    state: State = "failed" if wrong else "ok"
    return Finding("devices", name, state, f"{what}; {wrong or 'a small attention is right'}")


def _compiler() -> Finding:
    """Are kernels compiled for a device that is not here?"""
    if importlib.util.find_spec("triton") is None:
        return Finding("compilers", TARGET, "missing", "triton is not installed")
    compilation = Compilation(
        load("causal"),
        problem=Problem("bfloat16", 64, 64),
        target=TARGET,
        config=KernelConfig(64, 64, 4, 2, "pointer"),
    )
    try:
        size = len(compilation.text("ptx"))
    except (PatternccError, RuntimeError, OSError) as error:
        return Finding("compilers", TARGET, "failed", f"{type(error).__name__}: {error}")
    return Finding("compilers", TARGET, "ok", f"a kernel compiles, {size:,} bytes of PTX")


def _cache() -> Iterator[Finding]:
    folder = settings.settings().cache_dir
    if not folder.exists():
        yield Finding("cache", str(folder), "ok", "not made yet")
        return
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    yield Finding("cache", str(folder), "ok", f"{len(files):,} files, {size / 2**20:.1f} MiB")


def _environment() -> Iterator[Finding]:
    now = settings.settings()
    values = {
        "PATTERNCC_CACHE_DIR": str(now.cache_dir),
        "PATTERNCC_DEBUG": str(int(now.debug)),
        "PATTERNCC_ISOLATE": "not set" if now.isolate is None else str(int(now.isolate)),
        "PATTERNCC_ONE_PASS": str(int(now.one_pass)),
        "PATTERNCC_TUNED": str(int(now.tuned)),
        "PATTERNCC_VERIFY": str(int(now.verify)),
    }
    for variable in settings.VARIABLES:
        value = values[variable.name]
        yield Finding("environment", variable.name, "ok", f"{value} ({variable.meaning})")
