"""Runs generated kernels: source to file, file to module, module to a compiled kernel, launches on torch tensors.

The only importer of triton. Kernels are compiled ahead of their launch with a signature given here, so the values of
lengths, offsets, strides and run-time numbers never specialise them: there are two variants at most, for tensors whose
addresses and strides are multiples of 16 bytes and for others.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import platformdirs
import torch

from patterncc.codegen.config import INTERPRETER, KernelConfig, check_config, default_config
from patterncc.codegen.forward_source import emit_forward
from patterncc.codegen.interval import LIMIT, MOST_PROGRAMS
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.layout import Layout
from patterncc.codegen.problem import DType, Problem
from patterncc.codegen.schedule import evaluate
from patterncc.codegen.triton_source import KernelSource
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import TRUE

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

Lowered = Callable[[int, int], Sequence[BlockProgram]]
"""Lowers for a tile shape `(block_q, block_k)`: programs from the most special to one that assumes nothing."""

_DTYPES: dict[torch.dtype, DType] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
_PLANS_KEPT = 1024
_modules: dict[str, ModuleType] = {}
_kernels: dict[tuple[str, bool, str, int | None], Any] = {}


def kernel_count() -> int:
    """How many kernels have been compiled (or fetched from Triton's cache) for launches in this process."""
    return len(_kernels)


def interpreting() -> bool:
    """Do kernels run in Triton's interpreter, on CPU tensors? Decided by TRITON_INTERPRET when triton is imported."""
    return _MISSING is None and isinstance(triton.language.max, InterpretedFunction)


# --------------------------------------------------------------------------------------------- compiling


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A kernel compiled for a target, and what it needs of a multiprocessor.

    Attributes:
        source: What it was compiled from.
        target: `cuda:90`, `hip:gfx942`.
        registers: Per thread.
        spilled: Bytes of local memory per thread; more than 0 is slow.
        shared: Bytes of shared memory per program.
        stages: Texts and binaries of the compiler's stages: `ttir`, `ttgir`, `llir`, `ptx`, `cubin`, ...
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
        target: `cuda:<compute capability>` such as `cuda:90`, or `hip:<architecture>` such as `hip:gfx942`.
        aligned: The variant for 16-byte aligned tensors, or the one for any.
        folder: Where the source is written; the user's cache by default.

    Raises:
        UnsupportedError: Triton is missing, or kernels are being interpreted in this process.
        ConfigError: The target is no target.
    """
    kernel = _compile(source, target, aligned, folder)
    registers, spilled = _resources(kernel, target)
    return CompiledKernel(
        source, target, registers, spilled, int(kernel.metadata.shared), dict(kernel.asm)
    )


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
    return triton.compile(
        ASTSource(function, signature, attrs=attributes), target=_gpu_target(target), options=options
    )


def _gpu_target(target: str) -> Any:
    backend, _, arch = target.partition(":")
    if backend == "cuda" and arch.isdigit():
        return GPUTarget("cuda", int(arch), 32)
    if backend == "hip" and arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    raise ConfigError(f"there is no target {target!r}", ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942"))


def _resources(kernel: Any, target: str) -> tuple[int, int]:
    """Registers and bytes of local memory per thread, as the assembler reports them."""
    if target.startswith("hip"):
        text = kernel.asm["amdgcn"]
        counts = re.search(r"\.vgpr_count:\s*(\d+)", text), re.search(
            r"\.private_segment_fixed_size:\s*(\d+)", text
        )
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            text = subprocess.run(
                [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        counts = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    return (int(counts[0][1]) if counts[0] else 0, int(counts[1][1]) if counts[1] else 0)


def _module(source: KernelSource, folder: Path | None) -> ModuleType:
    """Imports the source from a file: Triton reads a function's text from there, and so can a person."""
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


# --------------------------------------------------------------------------------------------- launching


@dataclass(frozen=True, slots=True)
class _Plan:
    """All of a call that stays the same while shapes, strides, alignment and numbers do.

    Attributes:
        run: Launches on the current stream, given the kernel's arguments in order.
        described: Of each descriptor argument: which of query, key, value, its sizes, strides and box.
        rest: The arguments after the pointers.
    """

    run: Callable[..., None]
    described: tuple[tuple[int, list[int], list[int], list[int]], ...]
    rest: tuple[float | int, ...]


class Forward:
    """Attention forward of one pattern on GPUs: compiles what a call needs once and launches it.

    Args:
        lower: Gives the pattern's programs for a tile shape, from the most special to one that assumes nothing.
        config: The kernel's config; None takes the default for each problem and device, which loads by descriptors
            where the device has them and the tensors' layout allows them, else by pointers.
        folder: Where generated sources are written; the user's cache by default.

    Raises:
        UnsupportedError: Triton is missing.
    """

    def __init__(
        self, lower: Lowered, *, config: KernelConfig | None = None, folder: Path | None = None
    ) -> None:
        _require_triton()
        self._lower = lower
        self._config = config
        self._folder = folder
        self._programs: dict[tuple[int, int], Sequence[BlockProgram]] = {}
        self._plans: dict[tuple[Any, ...], _Plan] = {}

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        env: Mapping[str, int],
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the kernel on the current stream; never waits for the device, so a CUDA graph can capture it.

        Args:
            query: `[batch, heads, q_len, head_dim]`, any strides; the last axis is copied where it is not contiguous.
            key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
            value: `[batch, kv_heads, kv_len, value_head_dim]`.
            env: `q_offset`, and the other scalars that the pattern reads, by name.
            scale: Of the scores; finite.

        Returns:
            `out` `[batch, heads, q_len, value_head_dim]` of the query's dtype, and the natural logarithm of the sum of
            exponentials, float32 `[batch, heads, q_len]`.

        Raises:
            UnsupportedError: The dtype, a size or a number is beyond what kernels compute with.
            ConfigError: The config given at construction is illegal for these tensors or this device.
        """
        if scale < 0:  # the kernel takes the largest score before it scales
            query, scale = -query, -scale
        query, key, value = (t if t.stride(3) == 1 else t.contiguous() for t in (query, key, value))
        batch, heads, q_len, _ = query.shape
        out = query.new_empty((batch, heads, q_len, value.shape[3]))
        lse = query.new_empty((batch, heads, q_len), dtype=torch.float32)
        if out.numel() == 0 or key.shape[2] == 0:
            return out.zero_(), lse.fill_(-math.inf)
        tensors = (query, key, value)
        plan = self._plan(tensors, out, env, scale)
        arguments: list[Any] = [
            TensorDescriptor(tensors[which], *described) for which, *described in plan.described
        ]
        pointers = (out, lse) if plan.described else (*tensors, out, lse)
        # An address as a number saves the launcher a question to the driver for each tensor.
        arguments += pointers if interpreting() else [tensor.data_ptr() for tensor in pointers]
        if query.is_cuda and query.device.index != torch.cuda.current_device():
            with torch.cuda.device(query.device):
                plan.run(*arguments, *plan.rest)
        else:
            plan.run(*arguments, *plan.rest)
        return out, lse

    def source(self, problem: Problem, target: str, env: Mapping[str, int]) -> KernelSource:
        """The kernel that a call with tensors of legal layout would run; nothing is compiled.

        Args:
            problem: The shape class.
            target: As in `compile_for`.
            env: The scalars that decide between programs: `q_offset`, `q_len`, `kv_len`.
        """
        config = self._config or self._default(problem, target)
        check_config(config, problem, target)
        return emit_forward(self._program(config, env), problem, config)

    def _plan(
        self, tensors: tuple[torch.Tensor, ...], out: torch.Tensor, env: Mapping[str, int], scale: float
    ) -> _Plan:
        query, key, value = tensors
        signature = (
            query.dtype,
            query.device,
            *(part for tensor in tensors for part in (tensor.shape, tensor.stride())),
            (query.data_ptr() | key.data_ptr() | value.data_ptr()) & 15,
            scale,
            tuple(env.items()),
        )
        plan = self._plans.get(signature)
        if plan is None:
            if len(self._plans) >= _PLANS_KEPT:  # a growing cache gives every step new lengths
                self._plans.clear()
            plan = self._plans[signature] = self._make_plan(tensors, out, env, scale)
        return plan

    def _make_plan(
        self, tensors: tuple[torch.Tensor, ...], out: torch.Tensor, env: Mapping[str, int], scale: float
    ) -> _Plan:
        query, key, value = tensors
        batch, heads, q_len, head_dim = query.shape
        group = heads // key.shape[1]
        if query.dtype not in _DTYPES:
            raise UnsupportedError(f"no kernel computes in {query.dtype}", "use float16, bfloat16 or float32")
        problem = Problem(_DTYPES[query.dtype], head_dim, value.shape[3], group)
        env = {**env, "q_len": q_len, "kv_len": key.shape[2]}
        _check_limits(env, batch, heads)
        target = _target_of(query.device)
        layouts = tuple(
            Layout(name, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.itemsize)
            for name, tensor in (("query", query), ("key", key), ("value", value), ("out", out))
        )
        config = self._choose(problem, target, layouts[:3])
        source = emit_forward(self._program(config, env), problem, config)
        aligned = all(layout.aligned for layout in layouts)
        grid = (-(-q_len // config.block_q), heads, batch)
        described = tuple(
            (which, list(layout.sizes), layout.descriptor_strides, list(parameter.box))
            for parameter in source.parameters
            for which, layout in enumerate(layouts[:3])
            if parameter.box and parameter.name.startswith(layout.name)
        )
        values: dict[str, float | int] = {f"number_{name}": number for name, number in env.items()}
        values |= env
        values["scale"] = scale * math.log2(math.e)
        for layout in layouts:
            for axis, step in zip(("batch", "head", "row"), layout.steps, strict=True):
                values[f"{layout.name}_stride_{axis}"] = step
        names = [p.name for p in source.parameters if not p.box and not p.name.endswith("_ptr")]
        missing = [name.removeprefix("number_") for name in names if name not in values]
        if missing:
            raise ConfigError(f"the pattern reads {', '.join(missing)}, which the call does not give")
        rest = tuple(values[name] for name in names)
        return _Plan(self._runner(source, target, aligned, grid, query.device), described, rest)

    def _choose(self, problem: Problem, target: str, layouts: Sequence[Layout]) -> KernelConfig:
        """The config for a call: as asked, or the default with the loads that the layout allows."""
        obstacles = [o for layout in layouts if (o := layout.descriptor_obstacle()) is not None]
        if self._config is None:
            config = self._default(problem, target)
            if config.load == "descriptor" and obstacles:
                config = replace(config, load="pointer")
        else:
            config = self._config
            if config.load == "descriptor" and obstacles:
                raise ConfigError(f"load='descriptor' is impossible: {obstacles[0]}", ("pointer",))
        check_config(config, problem, target)
        return config

    def _default(self, problem: Problem, target: str) -> KernelConfig:
        config = default_config(problem, target)
        return default_config(problem, target, self._lowered(config)[-1])

    def _lowered(self, config: KernelConfig) -> Sequence[BlockProgram]:
        tile = (config.block_q, config.block_k)
        if tile not in self._programs:
            self._programs[tile] = self._lower(*tile)
        return self._programs[tile]

    def _program(self, config: KernelConfig, env: Mapping[str, int]) -> BlockProgram:
        """The first program whose assumption the call meets."""
        for program in self._lowered(config):
            if program.assume == TRUE or bool(evaluate(program.assume, env)):
                return program
        raise ConfigError("no program of the pattern was lowered for a call like this one")

    def _runner(
        self,
        source: KernelSource,
        target: str,
        aligned: bool,
        grid: tuple[int, int, int],
        device: torch.device,
    ) -> Callable[..., None]:
        """What launches a kernel over a grid; compiles it first where this process has not yet."""
        if interpreting():
            return cast("Callable[..., None]", getattr(_module(source, self._folder), source.name)[grid])
        name = (source.digest, aligned, target, device.index)
        with torch.cuda.device(device):
            if name not in _kernels:
                _kernels[name] = _compile(source, target, aligned, self._folder)
            return cast("Callable[..., None]", _kernels[name][grid])


def _target_of(device: torch.device) -> str:
    """The compile target of a device that is present.

    Raises:
        UnsupportedError: Kernels do not run there.
    """
    if interpreting():
        return INTERPRETER
    if device.type != "cuda":
        raise UnsupportedError(
            f"GPU kernels do not run on {device.type} tensors", "move them to a GPU, or use the CPU executor"
        )
    if torch.version.hip is not None:
        return f"hip:{torch.cuda.get_device_properties(device).gcnArchName.split(':')[0]}"
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda:{10 * major + minor}"


def _check_limits(env: Mapping[str, int], batch: int, heads: int) -> None:
    """Refuses what 32-bit positions or the grid cannot hold, by name."""
    if max(batch, heads) > MOST_PROGRAMS:
        raise UnsupportedError(
            f"{batch} batch entries of {heads} heads are too many for one launch",
            f"at most {MOST_PROGRAMS} of each: split the call",
        )
    last = {"q_offset + q_len": env["q_offset"] + env["q_len"]}
    for name, value in {**env, **last}.items():
        if not -LIMIT <= value <= LIMIT:
            raise UnsupportedError(
                f"{name} is {value}, beyond what kernels count with", f"at most {LIMIT} in magnitude"
            )
