"""What the Gluon emitter cannot do, in words; the Triton emitter does all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.gluon.warps import ROWS
from patterncc.codegen.gpu.kernel_terms import spreads
from patterncc.codegen.ir import DENSE
from patterncc.dsl.score.nodes import Apply, Lookup, walk

if TYPE_CHECKING:
    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem
    from patterncc.dsl.score.terms import ScoreTerms

HOPPER = "cuda:90"
"""The only target: its matrix instructions and its copies are what the kernels are made of."""

HEAD_DIMS = (64, 128)


def reason_against(program: BlockProgram, problem: Problem) -> str | None:
    """Why no Gluon kernel computes a pass of a pattern on `HOPPER`, or None.

    Args:
        program: The pass.
        problem: The shape class.
    """
    if program.patches is not None:
        return problem_reason(problem) or "it knows no tiles that are patches of a raster"
    return problem_reason(problem) or (
        "tables decide which tiles are visited" if program.listed or program.gathered > 1 else None
    )


def one_pass_reason(program: BlockProgram, problem: Problem) -> str | None:
    """Why no Gluon kernel computes all gradients of a pattern's only pass on `HOPPER`, or None.

    Args:
        program: The pass.
        problem: The shape class.
    """
    reason = reason_against(program, problem)
    if reason is not None:
        return reason
    if problem.isolates:
        return "it does not isolate numbers that are not finite"
    if not problem.terms.plain:
        return "it knows no score terms"
    if program.tiling != DENSE:
        return "rows or keys are visited in classes"
    if any(sweep.repeats for sweep in program.transposed or ()):
        return "loops around its loops over tiles take registers"
    return None


def problem_reason(problem: Problem) -> str | None:
    """Why no Gluon kernel does a shape class, whatever the pattern, or None."""
    if problem.dtype not in ("float16", "bfloat16"):
        return f"its products are of 16-bit numbers, not of {problem.dtype}"
    dims = (problem.head_dim, problem.value_head_dim)
    if dims[0] != dims[1] or dims[0] not in HEAD_DIMS:
        return f"its head dimensions are 64 or 128, both alike, not {dims[0]} and {dims[1]}"
    return terms_reason(problem.terms)


def terms_reason(terms: ScoreTerms) -> str | None:
    """Why no Gluon kernel does some score terms, or None."""
    for expr in terms.exprs:
        for node in walk(expr):
            if isinstance(node, Lookup) and any(map(spreads, node.indexes)):
                return "it looks nothing up for each row or key"
            if isinstance(node, Apply) and node.function == "sigmoid":
                return "it knows no sigmoid"
    return None


def config_reason(config: KernelConfig, target: str) -> str | None:
    """Why a config is none of a Gluon kernel, or None."""
    if target != HOPPER:
        return f"it writes kernels for {HOPPER} alone, not for {target}"
    if config.load != "descriptor":
        return f"it loads by descriptors, not by load={config.load!r}"
    if config.block_q not in (ROWS, 2 * ROWS):
        return f"its query tiles have {ROWS} or {2 * ROWS} rows, not {config.block_q}"
    if config.block_k not in (64, 128):
        return f"its key tiles have 64 or 128 keys, not {config.block_k}"
    if config.num_warps != config.block_q // 16:
        return f"{config.block_q} rows take {config.block_q // 16} warps, not {config.num_warps}"
    if config.num_stages < 2:
        return "its rings of tiles have at least 2 stages"
    if config.max_registers is not None and config.max_registers % 8:
        return f"registers come in eights, not as max_registers={config.max_registers}"
    return None
