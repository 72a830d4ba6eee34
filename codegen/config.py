"""`KernelConfig`: the tunable choices of one kernel, whether they are legal for a problem, and the default."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from patterncc.codegen.head_dim import parts
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.mask import variables

if TYPE_CHECKING:
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """How a kernel is built: tile shape, warps per program, pipeline depth and the way tiles are loaded.

    Attributes:
        block_q, block_k: Tile shape.
        num_warps: Warps of one program.
        num_stages: Depth of the load pipeline.
        load: Tensor descriptors (TMA on Hopper and later) or pointers.
        order: Query tiles from the first or from the last; `reverse` starts a causal pattern's longest tiles first.
        max_registers: Registers per thread at most, to fit more programs on a multiprocessor; None leaves it open.
    """

    block_q: int = 128
    block_k: int = 128
    num_warps: int = 8
    num_stages: int = 2
    load: Literal["descriptor", "pointer"] = "pointer"
    order: Literal["forward", "reverse"] = "forward"
    max_registers: int | None = None


INTERPRETER = "interpreter"
"""The target of Triton's interpreter, which runs kernels on the CPU, for tests."""

_SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 103: 232448, 120: 101376}
"""Bytes of shared memory that one program can have, by compute capability."""


def check_config(config: KernelConfig, problem: Problem, target: str) -> None:
    """Refuses a config that cannot work.

    Args:
        config: The config.
        problem: The shape class it is for.
        target: `cuda:90`, `hip:gfx942`, or `INTERPRETER`.

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
    ):
        if value not in legal:
            raise ConfigError(f"{name}={value!r} is no choice on {target}", tuple(map(str, legal)))
    if config.max_registers is not None and not 32 <= config.max_registers <= 255:
        raise ConfigError(f"max_registers={config.max_registers} is no choice", ("32 to 255", "None"))
    limit = shared_limit(target)
    if limit is not None and (needed := shared_bytes(config, problem)) > limit:
        raise ConfigError(
            f"tiles of {config.block_q}x{config.block_k} in {config.num_stages} stages take {needed} bytes of shared "
            f"memory, {target} has {limit}",
            ("a smaller block_k", "fewer num_stages"),
        )


def loads(target: str) -> tuple[str, ...]:
    """The ways to load tiles that a target has: descriptors need the tensor memory accelerator."""
    capability = _capability(target)
    if target == INTERPRETER or (capability is not None and capability >= 90):
        return ("descriptor", "pointer")
    return ("pointer",)


def shared_limit(target: str) -> int | None:
    """Bytes of shared memory that one program can have; None where the compiler decides alone."""
    capability = _capability(target)
    return None if capability is None else _SHARED_MEMORY.get(capability, 101376)


def shared_bytes(config: KernelConfig, problem: Problem) -> int:
    """Bytes that the query tile and the buffers of key and value tiles take; barriers and the like come on top."""
    item = 4 if problem.dtype == "float32" else 2
    query = config.block_q * sum(part.width for part in parts(problem.head_dim))
    columns = sum(p.width for p in (*parts(problem.head_dim), *parts(problem.value_head_dim)))
    return item * (query + config.num_stages * config.block_k * columns)


def default_config(problem: Problem, target: str, program: BlockProgram | None = None) -> KernelConfig:
    """The config to start from, where nothing has been tuned.

    Args:
        problem: The shape class.
        target: As in `check_config`.
        program: The lowered pattern, to choose the order of tiles by.
    """
    widest = max(problem.head_dim, problem.value_head_dim)
    if target == INTERPRETER:
        config = KernelConfig(32, 32, 4, 1, "pointer")
    elif problem.dtype == "float32":
        # Without tensor cores accumulators and operands share the registers: small tiles.
        config = KernelConfig(64, 32, 4, 2, "pointer") if widest <= 64 else KernelConfig(32, 32, 4, 2, "pointer")
    elif target.startswith("hip"):
        config = KernelConfig(128, 64, 4, 1, "pointer") if widest <= 128 else KernelConfig(64, 64, 4, 1, "pointer")
    elif (_capability(target) or 0) >= 90:
        if widest <= 64:
            config = KernelConfig(128, 128, 4, 3, "descriptor")
        elif widest <= 128:
            config = KernelConfig(128, 64, 8, 3, "descriptor")
        else:
            config = KernelConfig(128, 64, 8, 2, "descriptor")
    elif widest <= 128:
        config = KernelConfig(128, 64, 4 if widest <= 64 else 8, 3, "pointer")
    else:
        config = KernelConfig(64, 32, 4, 2, "pointer")
    if program is not None and _grows(program):
        config = replace(config, order="reverse")
    return config


def _grows(program: BlockProgram) -> bool:
    """Do later query tiles see more keys, as under a causal mask? Read off the bounds: some end follows the row and
    its start does not."""
    rows = {"q_first", "q_last"}
    return any(
        rows & variables(sweep.hi) and not rows & variables(sweep.lo)
        for sweep in program.forward
        if sweep.kind == "full"
    )


def _capability(target: str) -> int | None:
    backend, _, number = target.partition(":")
    return int(number) if backend == "cuda" and number.isdigit() else None
