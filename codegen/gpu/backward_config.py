"""Configs of the backward kernels: shared memory, defaults.

Legality is `config.check_config`'s; what the defaults rest on is in docs/kernels.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.config import (
    INTERPRETER,
    KernelConfig,
    Load,
    fitting,
    has_tensor_memory,
    loads,
    shared_limit,
    suited,
    with_all_registers,
)
from patterncc.codegen.gpu.head_dim import query_key_value_parts
from patterncc.codegen.ir import K_LAST, K_TILE
from patterncc.dsl.mask import variables

if TYPE_CHECKING:
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem


@dataclass(frozen=True, slots=True)
class BackwardConfig:
    """How the kernels of a backward are built; None takes the default for each problem and device.

    Attributes:
        grad_query: Of the kernel that computes the query's gradient.
        grad_key_value: Of the one that computes the key's and the value's.
    """

    grad_query: KernelConfig | None = None
    grad_key_value: KernelConfig | None = None


def grad_query_shared_bytes(config: KernelConfig, problem: Problem) -> int:
    """Bytes of the buffers of key and value tiles, and of the tiles of query and `grad_out`.

    The latter are kept there from compute capability 9.0 on; before, and in float32 by pointers,
    they pass through one after the other. Barriers and changes of layout come on top.
    """
    item = 4 if problem.dtype == "float32" else 2
    keys, values = (sum(part.width for part in cut) for cut in query_key_value_parts(problem))
    rows = keys + values
    if problem.dtype == "float32" and config.load == "pointer":
        rows = max(keys, values)
    return item * (config.block_q * rows + config.num_stages * config.block_k * (keys + values))


def default_grad_query_config(
    problem: Problem, target: str, *, descriptors: bool = True
) -> KernelConfig:
    """The config of the query's gradient to start from, where nothing has been tuned.

    Args:
        problem: The shape class.
        target: As in `check_config`.
        descriptors: Does the layout of the tensors allow them?
    """
    config = _grad_query_tiles(problem, target, descriptors)
    config = fitting(config, problem, target, grad_query_shared_bytes)
    # Left alone, the assembler spills a few bytes of float32 for room for another program.
    return with_all_registers(config, target, always=problem.dtype == "float32")


def default_grad_position_config(
    problem: Problem, target: str, *, descriptors: bool = True
) -> KernelConfig:
    """The config of sums of tables' gradients by position: square tiles, loaded by pointers.

    Arguments as of `default_grad_query_config`.
    """
    widest = max(problem.head_dim, problem.value_head_dim)
    small = target == INTERPRETER or problem.dtype == "float32" or widest > 128
    block = 32 if small else 64
    return KernelConfig(block, block, 4, 1)


def suited_grad_query(
    config: KernelConfig, problem: Problem, target: str, program: BlockProgram
) -> KernelConfig:
    """A default config with what depends on the program, as `suited`."""
    return suited(config, problem, target, program, grad_query_shared_bytes)


def _grad_query_tiles(problem: Problem, target: str, descriptors: bool) -> KernelConfig:
    """By the wider head dimension: what fits the registers without spilling."""
    widest = max(problem.head_dim, problem.value_head_dim)
    if target == INTERPRETER:
        return KernelConfig(32, 32, 4, 1)
    if problem.dtype == "float32":
        if target.startswith("hip"):
            return KernelConfig(32, 32 if widest <= 128 else 16, 4, 2)
        return KernelConfig(32, 32, 4 if widest <= 128 else 8, 2)
    if target.startswith("hip"):
        return KernelConfig(64, 64, 4, 1) if widest <= 192 else KernelConfig(64, 32, 4, 1)
    if "descriptor" not in loads(target):
        # Query and `grad_out` stay in registers, beside the sums.
        if widest <= 128:
            return KernelConfig(64, 64 if widest <= 64 else 32, 4, 2)
        return KernelConfig(32, 32, 4, 2) if widest <= 192 else KernelConfig(64, 32, 8, 2)
    load: Load = "descriptor" if descriptors else "pointer"
    if widest <= 128:
        return KernelConfig(64, 64, 4, 2, load)
    if target == "cuda:90" and descriptors:
        # One program of 8 warps: for causal 20% and 60% faster than two of what follows.
        stages = 2 if widest <= 192 else 3
        return KernelConfig(128, 64 if widest <= 192 else 32, 8, stages, load)
    return KernelConfig(64, 32, 4 if descriptors else 8, 2, load)


# ------------------------------------------------------------------------------------ key, value


def grad_key_value_shared_bytes(config: KernelConfig, problem: Problem) -> int:
    """Bytes of the buffers of query and `grad_out` tiles, and of the tiles of key and value where
    they are kept there.

    Barriers and changes of layout come on top.
    """
    item = 4 if problem.dtype == "float32" else 2
    keys, values = (sum(part.width for part in cut) for cut in query_key_value_parts(problem))
    rows = config.num_stages * config.block_q
    if config.load == "descriptor":
        rows += config.block_k
    return item * rows * (keys + values)


def default_grad_key_value_config(
    problem: Problem, target: str, *, descriptors: bool = True
) -> KernelConfig:
    """The config of the gradients of key and value to start from, where nothing has been tuned;
    `block_k` keys are held, `block_q` rows at a time pass by.

    Args:
        problem: The shape class.
        target: As in `check_config`.
        descriptors: Does the layout of the tensors allow them?
    """
    config = _grad_key_value_tiles(problem, target, descriptors)
    limit = shared_limit(target)
    while limit is not None and grad_key_value_shared_bytes(config, problem) > limit:
        if config.num_stages > 2:
            config = replace(config, num_stages=config.num_stages - 1)
        else:
            config = replace(config, block_q=config.block_q // 2)
    # Left alone, the assembler may keep to 64 registers and spill two kilobytes.
    return with_all_registers(config, target, always=True)


def suited_grad_key_value(
    config: KernelConfig, problem: Problem, target: str, program: BlockProgram
) -> KernelConfig:
    """A default config with what depends on the program: the key tiles that see most queries
    first."""
    grows = any(
        _KEY_TILE & variables(sweep.hi) and not _KEY_TILE & variables(sweep.lo)
        for sweep in program.sweeps("transposed")
    )
    return replace(config, order="reverse" if grows else "forward")


_KEY_TILE = {K_TILE.name, K_LAST.name}


def _grad_key_value_tiles(problem: Problem, target: str, descriptors: bool) -> KernelConfig:
    """By the wider head dimension: two gradients share the registers with the scores.

    Four warps hold 64 keys: with eight, each half of them has half of the rows that pass by, and
    the weights go through shared memory to where the second product needs all of them. On an H200
    that doubled the time at a head dimension of 128. Beyond 128 a few spilled registers cost less
    than anything that avoids them.
    """
    widest = max(problem.head_dim, problem.value_head_dim)
    if target == INTERPRETER:
        return KernelConfig(32, 32, 4, 1)
    if problem.dtype == "float32":
        stages = 1 if target.startswith("hip") else 2
        return KernelConfig(16, 32 if widest <= 128 else 16, 4, stages)
    if target.startswith("hip"):
        return KernelConfig(32, 64, 4, 1) if widest <= 128 else KernelConfig(32, 32, 4, 1)
    load: Load = "descriptor" if descriptors and "descriptor" in loads(target) else "pointer"
    if "descriptor" not in loads(target):  # no wgmma: eight warps share the keys
        return KernelConfig(32, 64, 4, 2) if widest <= 64 else KernelConfig(32, 64, 8, 2)
    if widest <= (128 if load == "descriptor" else 64):
        return KernelConfig(64, 64, 4, 2, load)
    if widest <= 192:
        return KernelConfig(32, 64, 4, 2, load)
    # In tensor memory the sums leave registers, but shared memory holds copies of operands.
    return KernelConfig(32 if has_tensor_memory(target) else 64, 64, 8, 2, load)
