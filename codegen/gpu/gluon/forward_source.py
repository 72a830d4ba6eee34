"""The forward kernel in Gluon: a program for each query tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.gluon.forward_writer import ForwardWriter
from patterncc.codegen.gpu.gluon.steady_writer import SteadyWriter, keeps_peak

if TYPE_CHECKING:
    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.kernel_source import KernelSource
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem


def emit_gluon_forward(
    program: BlockProgram,
    problem: Problem,
    config: KernelConfig,
    *,
    resumes: bool = False,
    hands_on: bool = False,
) -> KernelSource:
    """Writes the forward kernel of a lowered pattern, for any lengths, offset, strides and numbers.

    Args:
        program: The pattern, or one pass of it.
        problem: The shape class.
        config: How to build it.
        resumes: It starts from what an earlier pass left.
        hands_on: It leaves its result for a later pass, instead of the output.

    Raises:
        UnsupportedError: The dtype or head dimension has no kernel, or the pattern has a cover.
        ConfigError: The config's tiles are not the program's, or Gluon has no kernel for the
            program.
    """
    steady = config.peaks == "kept" and keeps_peak(program, problem)
    writer = SteadyWriter if steady else ForwardWriter
    return writer(program, problem, config, resumes, hands_on).source()
