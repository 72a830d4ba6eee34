"""What a call with a config launches in a phase, and the config it has where nothing was tuned.

Plans the very launches that a call makes, from a job alone. Touches no device and loads no torch.
"""

from __future__ import annotations

from patterncc.autotune.job import Job
from patterncc.autotune.space import FORWARD, GRAD_KEY_VALUE, GRAD_QUERY, Phase
from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.backward_plan import BackwardPlanner
from patterncc.codegen.gpu.config import Emitter, KernelConfig, visits_patches
from patterncc.codegen.gpu.emitter_choice import choose_emitter
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.launches import Call, Launch
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.ir import Passes
from patterncc.codegen.key_width import key_width

_BYTES = {"float32": 4, "float64": 8}  # of an element; others have 2
_OF_QUERIES = ("query", "grad_out", "out")
_OF_VALUES = ("value", "grad_out", "out")


def planned(
    job: Job,
    phase: Phase,
    target: str,
    config: KernelConfig | None = None,
    *,
    multiprocessors: int = 1,
) -> tuple[Launch, ...]:
    """The launches of a phase for contiguous tensors, in order; those of gradients start with the
    launch that finds out what all gradients need of each row.

    Args:
        job: The call.
        phase: The phase.
        target: As in `codegen.gpu.config.check_config`.
        config: Of the phase's kernels; what an untuned call takes where None.
        multiprocessors: Of the device.

    Raises:
        ConfigError: The config is illegal for the call or the target.
        UnsupportedError: The pattern or the problem has no kernel.
    """
    shapes = {name: table.shape for name, table in job.tables.items()}
    if phase == FORWARD:
        layouts = [_layout(job, name) for name in ("query", "key", "value", "out")]
        forward = Planner(
            lambda block_q, block_k: job.alternatives(block_q, block_k, gather=True),
            config,
            key_width=lambda block_q, block_k: _key_width(job, block_q, block_k),
            special=lambda call: _special(job, call),
        )
        return forward.plan(job.problem, target, layouts, job.env, job.scale, shapes)
    layouts = [_layout(job, name) for name in ("grad_out", "query", "key", "value", "out")]
    gradients = BackwardPlanner(
        lambda block_q, block_k: job.alternatives(block_q, block_k, transposed=True),
        BackwardConfig(
            grad_query=config if phase == GRAD_QUERY else None,
            grad_key_value=config if phase == GRAD_KEY_VALUE else None,
        ),
        lower_rows=lambda block_q, block_k: job.alternatives(block_q, block_k, gather=True),
    )
    return gradients.plan(
        job.problem,
        target,
        layouts,
        job.env,
        job.scale,
        shapes,
        multiprocessors=multiprocessors,
        needs_query=phase == GRAD_QUERY,
        needs_key_value=phase == GRAD_KEY_VALUE,
    )


def untuned_config(job: Job, phase: Phase, target: str, multiprocessors: int = 1) -> KernelConfig:
    """The config of an untuned call on a GPU; of several passes that of the first.

    Arguments and errors as of `planned`.
    """
    launches = planned(job, phase, target, multiprocessors=multiprocessors)
    return next(each.source.config for each in launches if each.source.name == phase.name)


def _key_width(job: Job, block_q: int, block_k: int) -> int:
    def lowered(width: int) -> Passes:
        return job.passes(block_q, width, gather=True, patches=True)

    return key_width(job.pattern, lowered, block_k, job.sizes)


def _special(job: Job, call: Call) -> KernelConfig | None:
    def lowered(block_q: int, block_k: int, emitter: Emitter) -> Passes:
        return job.passes(block_q, block_k, patches=visits_patches(emitter))

    choice = choose_emitter(job.pattern, call.problem, call.target, lowered, job.sizes)
    return choice.for_rows(call.q_len).config


def _layout(job: Job, name: str) -> Layout:
    """Where a tensor of the call lies: contiguous and aligned."""
    of_queries = name in _OF_QUERIES
    heads = job.heads if of_queries else job.kv_heads
    length = job.q_len if of_queries else job.kv_len
    dim = job.problem.value_head_dim if name in _OF_VALUES else job.problem.head_dim
    sizes = (job.batch, heads, length, dim)
    strides = (heads * length * dim, length * dim, dim, 1)
    return Layout(name, 0, sizes, strides, _BYTES.get(job.problem.dtype, 2))
