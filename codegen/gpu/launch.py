"""Compiles and launches generated kernels: source to file, to module, to a compiled kernel.

The only importer of triton. Kernels are compiled ahead of their launch with a signature given here,
so the values of lengths, offsets, strides and run-time numbers never specialise them: there are two
variants at most, for tensors whose rows start at multiples of 16 bytes and for others.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import platformdirs
import torch

from patterncc.codegen.gpu.config import INTERPRETER, shared_limit
from patterncc.codegen.gpu.gluon.warps import warps_of
from patterncc.dsl.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from types import ModuleType

    from patterncc.codegen.gpu.kernel_source import KernelSource

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import driver as nvidia_driver
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource
    from triton.runtime.interpreter import InterpretedFunction
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError as error:  # no wheel for this platform
    _MISSING: ImportError | None = error
else:
    _MISSING = None

_modules: dict[str, ModuleType] = {}
_kernels: dict[tuple[str, bool, str, int | None], Any] = {}


def kernel_count() -> int:
    """How many kernels this process has compiled, or fetched from Triton's cache, to launch
    them."""
    return len(_kernels)


def interpreting() -> bool:
    """Do kernels run in Triton's interpreter, on CPU tensors? TRITON_INTERPRET decides it at
    import."""
    return _MISSING is None and isinstance(triton.language.max, InterpretedFunction)


# ------------------------------------------------------------------------------------ compiling


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A kernel compiled for a target, and what it needs of a multiprocessor.

    Attributes:
        source: What it was compiled from.
        target: `cuda:90`, `hip:gfx942`.
        registers: Per thread.
        spilled: Bytes of local memory per thread; more than 0 is slow.
        shared: Bytes of shared memory per program.
        stages: Texts and binaries of the compiler's stages: `ttir`, `ttgir`, `llir`, `ptx`, ...
    """

    source: KernelSource
    target: str
    registers: int
    spilled: int
    shared: int
    stages: Mapping[str, str | bytes]


def compile_for(
    source: KernelSource, target: str, *, aligned: bool = True, folder: Path | None = None
) -> CompiledKernel:
    """Compiles a kernel for a device that need not be present.

    Args:
        source: The kernel.
        target: `cuda:<compute capability>` such as `cuda:90`, or `hip:<architecture>` such as
            `hip:gfx942`.
        aligned: The variant for 16-byte aligned tensors, or the one for any.
        folder: Where the source is written; the user's cache by default.

    Raises:
        UnsupportedError: Triton is missing, or kernels are being interpreted in this process.
        ConfigError: The target is no target, or has too little shared memory for the config.
    """
    kernel = _compile(source, target, aligned, folder)
    registers, spilled = _resources(kernel, target)
    shared = int(kernel.metadata.shared)
    return CompiledKernel(source, target, registers, spilled, shared, dict(kernel.asm))


def _compile(source: KernelSource, target: str, aligned: bool, folder: Path | None) -> Any:
    """The kernel as Triton's own object."""
    function = getattr(_module(source, folder), source.name)
    if interpreting():
        raise UnsupportedError(
            "TRITON_INTERPRET is set, so nothing can be compiled", "unset it and start again"
        )
    signature = {parameter.name: parameter.type for parameter in source.parameters}
    attributes = {
        (position,): [["tt.divisibility", parameter.multiple]]
        for position, parameter in enumerate(source.parameters)
        if aligned and parameter.multiple > 1
    }
    options: dict[str, Any] = {
        "num_warps": source.config.num_warps,
        "num_stages": source.config.num_stages,
        "enable_fp_fusion": True,
    }
    if source.config.max_registers is not None and target.startswith("cuda"):
        options["maxnreg"] = source.config.max_registers
    if source.starts_early:
        options["launch_pdl"] = True
    language = ASTSource
    if source.config.emitter == "gluon":
        # The kernel is started as one warpgroup and adds the others itself.
        options |= {"num_warps": 4, "maxnreg": warps_of(source.config).at_start}
        language = GluonASTSource
    ast = language(function, signature, attrs=attributes)
    kernel = triton.compile(ast, target=_gpu_target(target), options=options)
    limit = shared_limit(target)
    if limit is not None and kernel.metadata.shared > limit:
        raise ConfigError(
            f"tiles of {source.config.block_q}x{source.config.block_k} in "
            f"{source.config.num_stages} stages take {kernel.metadata.shared} bytes of shared "
            f"memory, {target} has {limit}",
            ("a smaller block_k", "fewer num_stages"),
        )
    return kernel


def _gpu_target(target: str) -> Any:
    backend, _, arch = target.partition(":")
    if backend == "cuda" and arch.isdigit():
        return GPUTarget("cuda", int(arch), 32)
    if backend == "hip" and arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    raise ConfigError(f"there is no target {target!r}", ("cuda:80", "cuda:90", "hip:gfx942", "..."))


def _resources(kernel: Any, target: str) -> tuple[int, int]:
    """Registers and bytes of local memory per thread, as the assembler reports them."""
    if target.startswith("hip"):
        text = kernel.asm["amdgcn"]
        patterns = (r"\.vgpr_count:\s*(\d+)", r"\.private_segment_fixed_size:\s*(\d+)")
    else:
        text = _resource_usage(kernel.asm["cubin"])
        patterns = (r"REG:(\d+)", r"STACK:(\d+)")
    registers, stack = (re.search(pattern, text) for pattern in patterns)
    return int(registers[1]) if registers else 0, int(stack[1]) if stack else 0


def _resource_usage(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _module(source: KernelSource, folder: Path | None) -> ModuleType:
    """Imports the source from a file: Triton reads a function's text there, and so can a person."""
    require_triton()
    if source.digest not in _modules:
        folder = folder or platformdirs.user_cache_path("patterncc") / "src"
        path = folder / f"{source.digest}.py"
        _write(path, source.text)
        name = f"patterncc_kernel_{source.digest}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        _modules[source.digest] = module
    return _modules[source.digest]


def _write(path: Path, text: str) -> None:
    """Writes a file so that another process sees all of it or nothing; keeps one that is right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(temporary).replace(path)


def require_triton() -> None:
    if _MISSING is not None:
        raise UnsupportedError(
            "GPU kernels need Triton, which is not installed",
            "on Linux: pip install 'triton>=3.6'; elsewhere run on the CPU",
        ) from _MISSING


# ------------------------------------------------------------------------------------ launching


def kernel_of(
    source: KernelSource, device: torch.device, *, aligned: bool, folder: Path | None = None
) -> Any:
    """The kernel on a device as Triton's own object, or its function in the interpreter: indexed by
    a grid, either runs on the current stream. It is compiled where this process has not yet.

    Args:
        source: The kernel.
        device: Where to run it.
        aligned: As in `compile_for`.
        folder: As in `compile_for`.

    Raises:
        UnsupportedError: Kernels do not run there.
        ConfigError: The device has too little shared memory for the config.
    """
    if interpreting():
        return getattr(_module(source, folder), source.name)
    target = target_of(device)
    name = (source.digest, aligned, target, device.index)
    if name not in _kernels:
        with torch.cuda.device(device):
            kernel = _compile(source, target, aligned, folder)
            kernel.run  # noqa: B018  loads the kernel onto the device, which is the current one
            _kernels[name] = kernel
    return _kernels[name]


EARLY = 2
"""See `DirectLauncher.options`."""


class DirectLauncher(NamedTuple):
    """The C function that launches a kernel, and what it is given besides the kernel's arguments.

    Attributes:
        launch: Takes the three sizes of the grid, the stream, `options`, and the arguments, in
            which each descriptor is a tensor map, its sizes and its strides.
        options: The function, how to launch it, no scratch memory and no hooks; `EARLY` is the
            place of whether it may start before the kernel before it has ended.
        encoders: For each descriptor what makes its tensor map of an address, sizes and strides.
    """

    launch: Callable[..., None]
    options: tuple[Any, ...]
    encoders: tuple[Callable[[int, list[int], list[int]], Any], ...]


@functools.cache
def direct_launcher(kernel: Any) -> DirectLauncher | None:
    """What launches a loaded kernel without the Python of Triton's launcher, which takes longer
    than the driver does; None where that launcher is not the one that this function knows, or the
    kernel wants scratch memory.

    Triton gives no promise for it, so the version is asked for: others launch by their own means.
    """
    if not triton.__version__.startswith("3.6.") or torch.version.hip is not None:
        return None
    launcher, metadata = kernel.run, kernel.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        return None
    maps = tuple(getattr(metadata, "tensordesc_meta", None) or ())
    if None in maps or any(one["fp4_padded"] for one in maps):
        return None
    described = [kind for kind in kernel.src.signature.values() if kind.startswith("tensordesc")]
    if len(maps) != len(described):
        return None
    function = launcher.launch
    if described:  # it is in a function that describes tensors at each launch
        function = inspect.getclosurevars(function).nonlocals["launcher"]
    options = (
        kernel.function,
        launcher.launch_cooperative_grid,
        launcher.launch_pdl,
        None,
        None,
        kernel.packed_metadata,
        None,
        None,
        None,
    )
    return DirectLauncher(function, options, tuple(map(_encoder, maps)))


def _encoder(meta: Mapping[str, Any]) -> Callable[[int, list[int], list[int]], Any]:
    """What makes tensor maps of one descriptor of a kernel."""
    fill = triton.runtime.driver.active.utils.fill_tma_descriptor
    kind = nvidia_driver.TMA_DTYPE_DEVICE_TO_HOST[meta["elem_type"]]
    before = (meta["swizzle"], meta["elem_size"], kind, meta["block_size"])

    def encode(address: int, sizes: list[int], strides: list[int]) -> Any:
        return fill(address, *before, sizes, strides, 0)  # what lies outside is 0

    return encode


def hooked() -> bool:
    """Does somebody watch Triton's launches, such as its profiler?"""
    runtime = triton.knobs.runtime
    before, after = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(getattr(before, "calls", before)) or bool(getattr(after, "calls", after))


def descriptor(
    base: torch.Tensor, shape: list[int], strides: list[int], box: list[int]
) -> TensorDescriptor:
    """A tensor descriptor without the checks of its constructor: the plan has made them.

    They would take longer than all else that a call does on the host.
    """
    descriptor = object.__new__(TensorDescriptor)
    descriptor.base = base
    descriptor.shape = shape
    descriptor.strides = strides
    descriptor.block_shape = box
    descriptor.padding = "zero"
    return descriptor


def target_of(device: torch.device) -> str:
    """The compile target of a device that is present.

    Raises:
        UnsupportedError: Kernels do not run there.
    """
    if interpreting():
        return INTERPRETER
    if device.type != "cuda":
        raise UnsupportedError(
            f"GPU kernels do not run on {device.type} tensors",
            "move them to a GPU, or use the CPU executor",
        )
    if torch.version.hip is not None:
        return f"hip:{torch.cuda.get_device_properties(device).gcnArchName.split(':')[0]}"
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda:{10 * major + minor}"


def multiprocessors_of(device: torch.device) -> int:
    """How many multiprocessors a device has; the interpreter is one."""
    if interpreting() or device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
