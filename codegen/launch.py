"""Runs generated kernels: source to file, file to module, module to a compiled kernel, launches.

The only importer of triton. Kernels are compiled ahead of their launch with a signature given here,
so the values of lengths, offsets, strides and run-time numbers never specialise them: there are two
variants at most, for tensors whose rows start at multiples of 16 bytes and for others.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import platformdirs
import torch

from patterncc.codegen.config import INTERPRETER, shared_limit
from patterncc.codegen.layout import Layout
from patterncc.codegen.plan import Launch, Planner
from patterncc.codegen.problem import DType, Problem
from patterncc.dsl.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from types import ModuleType

    from patterncc.codegen.config import KernelConfig
    from patterncc.codegen.plan import Lowered
    from patterncc.codegen.table_source import Table, TableKind
    from patterncc.codegen.triton_source import KernelSource

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.interpreter import InterpretedFunction
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError as error:  # no wheel for this platform
    _MISSING: ImportError | None = error
else:
    _MISSING = None

_DTYPES: dict[torch.dtype, DType] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
_TABLE_DTYPES: Mapping[TableKind, tuple[torch.dtype, ...]] = {
    "int": (torch.int32,),
    "bool": (torch.bool, torch.uint8),
    "segments": (torch.int32,),
}
_NO_TABLES: Mapping[str, torch.Tensor] = MappingProxyType({})
_PLANS_KEPT = 1024
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
    ast = ASTSource(function, signature, attrs=attributes)
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
    _require_triton()
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


def _require_triton() -> None:
    if _MISSING is not None:
        raise UnsupportedError(
            "GPU kernels need Triton, which is not installed",
            "on Linux: pip install 'triton>=3.6'; elsewhere run on the CPU",
        ) from _MISSING


# ------------------------------------------------------------------------------------ launching

_Step: TypeAlias = tuple[Launch, Callable[..., None]]
"""A launch and what runs its kernel over its grid."""


class Forward:
    """Attention forward of one pattern on GPUs: compiles what a call needs once and launches it.

    Args:
        lower: Gives the pattern's passes for a tile shape, from the most special alternative to
            one that assumes nothing.
        config: Of every kernel; None takes the default for each problem and device, which loads by
            descriptors where the device has them and the tensors' layout allows them, else by
            pointers.
        folder: Where generated sources are written; the user's cache by default.

    Raises:
        UnsupportedError: Triton is missing.
    """

    def __init__(
        self, lower: Lowered, *, config: KernelConfig | None = None, folder: Path | None = None
    ) -> None:
        _require_triton()
        self.planner = Planner(lower, config)
        self._folder = folder
        self._plans: dict[tuple[Any, ...], tuple[_Step, ...]] = {}

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        env: Mapping[str, int],
        scale: float,
        tables: Mapping[str, torch.Tensor] = _NO_TABLES,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the kernels of all passes on the current stream.

        Never waits for the device and allocates from torch alone, so a CUDA graph can capture it
        once a first call has compiled the kernels.

        Args:
            query: `[batch, heads, q_len, head_dim]`, any strides; the last axis is copied where it
                is not contiguous.
            key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
            value: `[batch, kv_heads, kv_len, value_head_dim]`.
            env: `q_offset`, and the other scalars that the pattern reads, by name.
            scale: Of the scores; finite.
            tables: The tables that the pattern reads, by name, contiguous and on the query's
                device: int32 for numbers and for `segments` (`cu_seqlens`: from 0, never falling),
                bool or uint8 for truth values. What they hold is not looked at here.

        Returns:
            `out` `[batch, heads, q_len, value_head_dim]` of the query's dtype, and the natural
            logarithm of the sum of exponentials, float32 `[batch, heads, q_len]`.

        Raises:
            UnsupportedError: The device, dtype, a size or a number has no kernel.
            ConfigError: The config given at construction is illegal for these tensors or this
                device; a number or table is missing, or a table of another kind.
        """
        if scale < 0:  # the kernel takes the largest score before it scales
            query, scale = -query, -scale
        query, key, value = (t if t.stride(3) == 1 else t.contiguous() for t in (query, key, value))
        batch, heads, q_len, _ = query.shape
        out = query.new_empty((batch, heads, q_len, value.shape[3]))
        lse = query.new_empty((batch, heads, q_len), dtype=torch.float32)
        if out.numel() == 0 or key.shape[2] == 0:
            return out.zero_(), lse.fill_(-math.inf)
        steps = self._plan((query, key, value), out, env, scale, tables)
        # What passes hand on; float32 outputs can hold it themselves.
        state = out
        handed_on = any("state" in launch.pointers for launch, _ in steps)
        if handed_on and out.dtype != torch.float32:
            state = torch.empty_like(out, dtype=torch.float32)
        operands = {"query": query, "key": key, "value": value, "out": out}
        operands |= {"lse": lse, "state": state}
        if query.is_cuda and query.device.index != torch.cuda.current_device():
            with torch.cuda.device(query.device):
                _run(steps, operands, tables)
        else:
            _run(steps, operands, tables)
        return out, lse

    def _plan(
        self,
        tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        out: torch.Tensor,
        env: Mapping[str, int],
        scale: float,
        tables: Mapping[str, torch.Tensor],
    ) -> tuple[_Step, ...]:
        """All of a call that stays while shapes, strides, alignment and numbers do; remembered."""
        query, key, value = tensors
        signature = (
            query.dtype,
            query.device,
            *(part for tensor in tensors for part in (tensor.shape, tensor.stride())),
            (query.data_ptr() | key.data_ptr() | value.data_ptr()) & 15,
            scale,
            tuple(env.items()),
            *(
                (name, table.shape, table.dtype, table.device, table.is_contiguous())
                for name, table in tables.items()
            ),
        )
        steps = self._plans.get(signature)
        if steps is None:
            named = zip(("query", "key", "value", "out"), (*tensors, out), strict=True)
            launches = self.planner.plan(
                _problem(query, key, value),
                _target_of(query.device),
                [
                    Layout(name, t.data_ptr(), tuple(t.shape), t.stride(), t.element_size())
                    for name, t in named
                ],
                env,
                scale,
                {name: tuple(table.shape) for name, table in tables.items()},
            )
            for launch in launches:
                _check_tables(launch.source.tables, tables, query.device)
            if len(self._plans) >= _PLANS_KEPT:  # a growing cache gives every step new lengths
                self._plans.clear()
            steps = tuple((launch, self._runner(launch, query.device)) for launch in launches)
            self._plans[signature] = steps
        return steps

    def _runner(self, launch: Launch, device: torch.device) -> Callable[..., None]:
        """What runs a kernel over its grid; compiles it where this process has not yet."""
        source = launch.source
        if interpreting():
            function = getattr(_module(source, self._folder), source.name)
            return function[launch.grid]  # type: ignore[no-any-return]
        target = _target_of(device)
        name = (source.digest, launch.aligned, target, device.index)
        with torch.cuda.device(device):
            if name not in _kernels:
                _kernels[name] = _compile(source, target, launch.aligned, self._folder)
            return _kernels[name][launch.grid]  # type: ignore[no-any-return]


def _run(
    steps: tuple[_Step, ...],
    operands: dict[str, torch.Tensor],
    tables: Mapping[str, torch.Tensor],
) -> None:
    """Launches the kernels of a call one after another; `operands` grows by what they fill."""
    tensors = (operands["query"], operands["key"], operands["value"])
    numbers = not interpreting()
    for launch, run in steps:
        for name, shape in launch.buffers:
            device = operands["query"].device
            operands[name] = torch.empty(shape, dtype=torch.int32, device=device)
        arguments: list[Any] = [
            _descriptor(tensors[which], *view) for which, *view in launch.described
        ]
        for name in launch.pointers:
            tensor = operands.get(name)
            if tensor is None:
                tensor = tables[name.removeprefix("table_")]
            # An address as a number saves the launcher a question to the driver for each tensor.
            arguments.append(tensor.data_ptr() if numbers else _plain(tensor))
        run(*arguments, *launch.rest)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """What the interpreter takes: it knows no pointer to truth values."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


def _check_tables(
    read: Iterable[Table], tables: Mapping[str, torch.Tensor], device: torch.device
) -> None:
    """Refuses tables that a kernel would misread.

    Raises:
        ConfigError: Names the table, what it is and what it must be.
    """
    for table in read:
        given = tables[table.name]
        if given.dtype not in _TABLE_DTYPES[table.kind]:
            wanted = tuple(str(dtype) for dtype in _TABLE_DTYPES[table.kind])
            raise ConfigError(f"the table {table.name} is {given.dtype}", wanted)
        if given.device != device or not given.is_contiguous():
            raise ConfigError(
                f"the table {table.name} is on {given.device} with strides {given.stride()}",
                (f"a contiguous tensor on {device}",),
            )


def _descriptor(
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


def _problem(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Problem:
    if query.dtype not in _DTYPES:
        raise UnsupportedError(
            f"no kernel computes in {query.dtype}", "use float16, bfloat16 or float32"
        )
    if interpreting() and query.dtype == torch.bfloat16:
        raise UnsupportedError(
            "Triton's interpreter multiplies the bits of bfloat16, not its values",
            "use float16 or float32 there",
        )
    group = query.shape[1] // key.shape[1]
    return Problem(_DTYPES[query.dtype], query.shape[3], value.shape[3], group)


def _target_of(device: torch.device) -> str:
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
