"""The kernel that adds up what the chunks of split key tiles have left, always in the same order.

A program is about some keys of one split tile: it adds their sums of one chunk after the other to
what an earlier pass left, if any, and stores the gradients, or the sums for a later pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.chunk_source import CHUNK_PARAMETERS, split_place_lines
from patterncc.codegen.gpu.class_source import (
    CLASS_NAMES,
    in_pairs,
    key_class_lines,
    key_lines,
    length_parameters,
)
from patterncc.codegen.gpu.kernel_source import KernelParameter, KernelSource
from patterncc.codegen.gpu.kernel_text import INDENT, described_fields, header_text, module_text
from patterncc.codegen.gpu.key_access_source import RESULTS, KeyAccess
from patterncc.codegen.gpu.mask_source import scalar_name
from patterncc.codegen.gpu.patch_source import key_patch_lines
from patterncc.dsl.mask import Param, Var, walk

if TYPE_CHECKING:
    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem

EMITTER = 1
"""Version of the generated text; it is part of the text, so a change of it separates caches."""

KEYS_TOGETHER = 16
"""Keys of one program: few, for there are few split tiles."""


def emit_sum_chunks(
    program: BlockProgram,
    problem: Problem,
    config: KernelConfig,
    *,
    resumes: bool = False,
    hands_on: bool = False,
) -> KernelSource:
    """Writes the kernel for what `emit_grad_key_value` with the same arguments leaves of split
    tiles; its grid has `block_k // KEYS_TOGETHER` programs for each of them, heads of the keys,
    batch entries."""
    config = replace(
        config, num_warps=4, num_stages=1, load="pointer", max_registers=None, emitter="triton"
    )
    access = KeyAccess(problem, config, program.tiling, program.patches)
    within, patches = "part * KEYS + tl.arange(0, KEYS)", program.patches
    lines = [
        f"BLOCK_K: tl.constexpr = {config.block_k}",
        f"KEYS: tl.constexpr = {KEYS_TOGETHER}",
        "",
        *split_place_lines(config.block_k // KEYS_TOGETHER),
        "kv_head = tl.program_id(1)",
        "batch = tl.program_id(2)",
        *key_class_lines(program.tiling),
        *(
            key_lines(program.tiling, within)
            if patches is None
            else key_patch_lines(patches, config.block_k, f"({within})")
        ),
        "",
        *_sums(access, resumes),
        "",
        *access.store_results("key_exists", hands_on, addressed=resumes),
    ]
    parameters = tuple(_parameters(program, access, resumes, hands_on))
    fields = described_fields(program, problem, config, EMITTER, resumes=resumes, hands_on=hands_on)
    header = header_text("Gradients of keys and values: sums of chunks", fields)
    text = module_text(header, "sum_chunks", parameters, lines)
    return KernelSource("sum_chunks", text, parameters, problem, config)


def _sums(access: KeyAccess, resumes: bool) -> Iterator[str]:
    yield access.sums_base("sums_row")
    yield "keys_in_tile = part * KEYS + tl.arange(0, KEYS)"
    if resumes:
        yield access.result_rows()
    for name in RESULTS:
        for number, part in enumerate(access.parts_of(name)):
            start = f"tl.zeros([KEYS, {part.width}], tl.float32)"
            if resumes:
                start = access.load_state(name, part, "key_exists")
            yield f"{name}_{number} = {start}"
    yield "for chunk in range(0, chunks):"
    for name in RESULTS:
        for number in range(len(access.parts_of(name))):
            place = access.sums_place(name, number, "keys_in_tile")
            yield f"{INDENT}{name}_{number} += tl.load({place})"
    yield f"{INDENT}sums += BLOCK_K * {access.columns}"


def _parameters(
    program: BlockProgram, access: KeyAccess, resumes: bool, hands_on: bool
) -> Iterator[KernelParameter]:
    yield from access.results(resumes, hands_on)
    if not hands_on:
        yield KernelParameter("scale", "fp32")
    lengths = length_parameters(program.tiling)
    yield from (KernelParameter(name, "i32") for name in lengths)
    yield from CHUNK_PARAMETERS
    # Keys in pairs with rows are found from the rows' class; others are counted themselves.
    read = [program.tiling.k_class] if in_pairs(program.tiling) else []
    if program.patches is not None:
        read += program.patches.before("k")
    leaves = (leaf for expr in read for leaf in walk(expr))
    names = {scalar_name(leaf) for leaf in leaves if isinstance(leaf, (Var, Param))}
    known = {*CLASS_NAMES, *lengths, "kv_head", "batch", "q_offset"}
    yield from (KernelParameter(name, "i32") for name in sorted(names - known))
