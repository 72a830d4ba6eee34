"""`KernelConfig`: the tunable choices of one kernel, whether they are legal, and the default."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from patterncc.codegen.gpu.gluon.reasons import config_reason, problem_reason
from patterncc.codegen.gpu.gluon.warps import tile_bytes
from patterncc.codegen.gpu.head_dim import query_key_value_parts
from patterncc.codegen.ir import box
from patterncc.codegen.listing import kernel_mask
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.mask import Entry, Member, variables, walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem


Load: TypeAlias = Literal["descriptor", "pointer"]
Order: TypeAlias = Literal["forward", "reverse"]
Neighbours: TypeAlias = Literal["tiles", "heads"]
Emitter: TypeAlias = Literal["triton", "gluon"]
Peaks: TypeAlias = Literal["each", "kept"]
SharedBytes: TypeAlias = "Callable[[KernelConfig, Problem], int]"
"""Bytes of shared memory of a kind of kernel."""


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """How a kernel is built.

    Attributes:
        block_q, block_k: Tile shape.
        num_warps: Warps of one program.
        num_stages: Depth of the load pipeline.
        load: Tensor descriptors (the tensor memory accelerator of Hopper and later) or pointers.
        order: Query tiles from the first or from the last on; `reverse` starts with the longest
            tiles of a causal pattern.
        neighbours: What programs that start one after another work on: query tiles of one head, or
            heads of one query tile, so that the long tiles of all heads start before short ones. A
            head's keys then share the cache with other heads': it rarely pays (docs/kernels.md).
        max_registers: Registers per thread at most, to fit more programs on a multiprocessor; None
            leaves it to the compiler. Of a Gluon kernel, those of a thread that computes.
        emitter: What writes the kernel: `triton`, which does everything everywhere, or `gluon`
            (docs/gluon.md).
        peaks: In a Gluon kernel, does `each` tile find the largest score of its rows, or do full
            tiles subtract what they find, `kept` from the tiles before, where they can
            (`steady_writer.keeps_peak`)?
    """

    block_q: int = 128
    block_k: int = 128
    num_warps: int = 8
    num_stages: int = 2
    load: Load = "pointer"
    order: Order = "forward"
    neighbours: Neighbours = "tiles"
    max_registers: int | None = None
    emitter: Emitter = "triton"
    peaks: Peaks = "each"


INTERPRETER = "interpreter"
"""The target of Triton's interpreter, which runs kernels on the CPU, for tests."""

_SMALL_SHARED_MEMORY = 101376
_SHARED_MEMORY = {80: 166912, 87: 166912, 90: 232448, 100: 232448, 103: 232448}
"""Bytes of shared memory that one program can have, by compute capability; others have less."""

_KEPT = 1024  # bytes of shared memory that the device keeps for itself, of each program

_ALL_REGISTERS = 255
"""What one thread can have. Shared and tensor memory let no more than two programs of a default
config onto a multiprocessor of compute capability 10, and its registers suffice for as many of
that size. Untold, the assembler keeps room for a third and spills for it."""


def check_config(
    config: KernelConfig, problem: Problem, target: str, shared: SharedBytes | None = None
) -> None:
    """Refuses a config that cannot work.

    Args:
        config: The config.
        problem: The shape class it is for.
        target: `cuda:90`, `hip:gfx942`, or `INTERPRETER`.
        shared: Shared memory of the kind of kernel; `shared_bytes` if none is given.

    Raises:
        ConfigError: Names the knob and its legal values.
    """
    for name, value, legal in (
        ("block_q", config.block_q, (16, 32, 64, 128, 256)),
        ("block_k", config.block_k, (16, 32, 64, 128, 256)),
        ("num_warps", config.num_warps, (1, 2, 4, 8, 16)),
        ("num_stages", config.num_stages, tuple(range(1, 9))),
        ("load", config.load, loads(target)),
        ("order", config.order, ("forward", "reverse")),
        ("neighbours", config.neighbours, ("tiles", "heads")),
        ("emitter", config.emitter, ("triton", "gluon")),
        ("peaks", config.peaks, ("each", "kept")),
    ):
        if value not in legal:
            raise ConfigError(f"{name}={value!r} is no choice on {target}", tuple(map(str, legal)))
    if config.max_registers is not None and not 32 <= config.max_registers <= 255:
        raise ConfigError(f"max_registers={config.max_registers} is no choice", ("32 to 255",))
    if config.emitter == "gluon":
        reason = problem_reason(problem) or config_reason(config, target)
        if reason is not None:
            raise ConfigError(f"emitter='gluon' is impossible: {reason}", ("emitter='triton'",))
    elif config.peaks == "kept":
        raise ConfigError(
            "peaks='kept' is for Gluon's kernels", ("peaks='each'", "emitter='gluon'")
        )
    limit = shared_limit(target)
    if limit is not None and (needed := (shared or shared_bytes)(config, problem)) > limit:
        raise ConfigError(
            f"tiles of {config.block_q}x{config.block_k} in {config.num_stages} stages take "
            f"{needed} bytes of shared memory, {target} has {limit}",
            ("a smaller block_k", "fewer num_stages"),
        )


def visits_patches(emitter: Emitter) -> bool:
    """Do an emitter's kernels visit tiles that are patches of a raster?"""
    return emitter == "triton"


def loads(target: str) -> tuple[str, ...]:
    """The ways to load tiles that a target has."""
    capability = _capability(target)
    if target == INTERPRETER or (capability is not None and capability >= 90):
        return ("descriptor", "pointer")
    return ("pointer",)


def shared_limit(target: str) -> int | None:
    """Bytes of shared memory that one program can have; None where the compiler decides alone."""
    capability = _capability(target)
    return None if capability is None else _SHARED_MEMORY.get(capability, _SMALL_SHARED_MEMORY)


def shared_bytes(config: KernelConfig, problem: Problem) -> int:
    """Bytes of the buffers of key and value tiles, and of the query tile where it is kept there.

    Barriers and the exchange of layouts in the epilogue come on top, up to 2 KiB.
    """
    if config.emitter == "gluon":
        return tile_bytes(config, problem)
    item = 4 if problem.dtype == "float32" else 2
    keys, values = (sum(part.width for part in cut) for cut in query_key_value_parts(problem))
    tiles = config.num_stages * config.block_k * (keys + values)
    return item * (tiles + (config.block_q * keys if config.load == "descriptor" else 0))


def default_config(
    problem: Problem,
    target: str,
    program: BlockProgram | None = None,
    *,
    descriptors: bool = True,
) -> KernelConfig:
    """The config to start from, where nothing has been tuned.

    Args:
        problem: The shape class.
        target: As in `check_config`.
        program: The lowered pattern, for what depends on it (`suited`).
        descriptors: Does the layout of the tensors allow them?
    """
    config = fitting(_tiles(problem, target, descriptors), problem, target, shared_bytes)
    config = with_all_registers(config, target)
    return config if program is None else suited(config, problem, target, program)


def narrowed(config: KernelConfig, block_k: int) -> KernelConfig:
    """A default config with narrower key tiles, as many as stages hide the loads of: those that
    were measured (docs/kernels.md), three for 32 keys, six for 16."""
    if block_k >= config.block_k:
        return config
    stages = 6 if block_k == 16 else config.num_stages
    return replace(config, block_k=block_k, num_stages=stages)


def suited(
    config: KernelConfig,
    problem: Problem,
    target: str,
    program: BlockProgram,
    shared: SharedBytes | None = None,
) -> KernelConfig:
    """A default config with what depends on the program: its order of tiles, and fewer stages
    where the mask reads a table pair by pair and would else leave room for fewer programs.

    What is read pair by pair changes its layout in shared memory. On an H200 a tenth of the blocks
    of 64 took 0.59 ms with three stages and one program, 0.41 ms with two of each.
    """
    config = replace(config, order=tile_order(program))
    if not any(
        isinstance(node, (Entry, Member)) and {"q", "k"} <= variables(node)
        for node in walk(kernel_mask(program))
    ):
        return config
    pairs, shared = config.block_q * config.block_k, shared or shared_bytes
    while config.num_stages > 2 and _programs(config, problem, target, shared, pairs) < _programs(
        config, problem, target, shared
    ):
        config = replace(config, num_stages=config.num_stages - 1)
    return config


def tile_order(program: BlockProgram) -> Order:
    """The order that starts with the longest query tiles."""
    return "reverse" if _grows(program) else "forward"


def _tiles(problem: Problem, target: str, descriptors: bool) -> KernelConfig:
    """By the wider head dimension: what fits the registers without spilling and hides the loads."""
    widest = max(problem.head_dim, problem.value_head_dim)
    if target == INTERPRETER:
        return KernelConfig(32, 32, 4, 1)
    if problem.dtype == "float32":
        # Accumulators and operands share the registers: wider tiles spill on one target or another.
        return KernelConfig(32, 32, 4, 2) if widest <= 160 else KernelConfig(32, 16, 4, 2)
    if target.startswith("hip"):
        return KernelConfig(128, 64, 4, 1) if widest <= 128 else KernelConfig(64, 64, 4, 1)
    load: Load = "descriptor" if descriptors and "descriptor" in loads(target) else "pointer"
    if widest <= 128:
        # Of 13 shapes on an H200 the best or within 5% of it for every pattern that skips tiles
        # (docs/kernels.md); dense causal gains 7% from 128x128, 8 warps.
        return KernelConfig(64, 64, 4, 3, load)
    if load == "descriptor":
        return KernelConfig(128, 64, 8, 2, load)
    return KernelConfig(128, 32, 8, 2) if widest <= 192 else KernelConfig(64, 32, 8, 2)


def with_all_registers(config: KernelConfig, target: str, *, always: bool = False) -> KernelConfig:
    """A default config that asks for all registers of a thread: where accumulators lie in tensor
    memory, or always."""
    if not (has_tensor_memory(target) or (always and _capability(target) is not None)):
        return config
    return replace(config, max_registers=_ALL_REGISTERS)


def fitting(
    config: KernelConfig, problem: Problem, target: str, shared: SharedBytes
) -> KernelConfig:
    """The config with fewer stages, then narrower key tiles, until its buffers fit the target."""
    limit = shared_limit(target)
    while limit is not None and shared(config, problem) > limit and config.block_k > 16:
        if config.num_stages > 2:
            config = replace(config, num_stages=config.num_stages - 1)
        else:
            config = replace(config, block_k=config.block_k // 2)
    return config


def _programs(
    config: KernelConfig, problem: Problem, target: str, shared: SharedBytes, more: int = 0
) -> int:
    """How many programs' shared memory a multiprocessor has, `more` bytes each on top."""
    limit = shared_limit(target)
    if limit is None:
        return 1
    # Barriers, the exchange of layouts at the end, and what the device keeps of each program.
    return (limit + _KEPT) // (shared(config, problem) + more + 1024 + _KEPT)


def _grows(program: BlockProgram) -> bool:
    """Do later query tiles see more keys, as under a causal mask?

    Read off the bounds: some sweep's end follows the row while its start does not.
    """
    rows = {"q_first", "q_last"}
    if program.patches is not None:
        rows = {box("q", end, 0).name for end in ("first", "last")}
        return any(
            bool(rows & variables(repeat.hi)) and not rows & variables(sweep.phase)
            for sweep in program.forward
            for repeat in sweep.repeats
        )
    return any(
        bool(rows & variables(sweep.hi)) and not rows & variables(sweep.lo)
        for sweep in program.forward
    )


def has_tensor_memory(target: str) -> bool:
    """Do accumulators lie in tensor memory there, instead of registers?"""
    capability = _capability(target)
    return capability is not None and 100 <= capability < 120


def _capability(target: str) -> int | None:
    backend, _, number = target.partition(":")
    return int(number) if backend == "cuda" and number.isdigit() else None
