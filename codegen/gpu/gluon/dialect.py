"""Gluon's interface, which changes between releases of Triton, under names of our own.

Generated kernels start with `PRELUDE` and call what it names; no other file knows what Gluon calls
it. Scalars and tensors of registers are written as in Triton, so the module calls Gluon's language
`tl`, and the texts of bounds and masks serve both.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.access_source import TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from patterncc.codegen.problem import DType

PRELUDE = '''\
from triton.experimental import gluon
from triton.experimental.gluon import language as tl
from triton.experimental.gluon.language.nvidia import hopper

# Gluon's interface changes between releases of Triton: the kernel calls it by these names alone.
copy_in = getattr(hopper.tma, "async_load", None) or hopper.tma.async_copy_global_to_shared
copy_out = (
    hopper.tma.async_store
    if hasattr(hopper.tma, "async_load")
    else hopper.tma.async_copy_shared_to_global
)
copied_out = hopper.tma.store_wait
init_barrier = hopper.mbarrier.init
expect_bytes = hopper.mbarrier.expect
arrive = hopper.mbarrier.arrive
wait = hopper.mbarrier.wait
multiply = hopper.warpgroup_mma
finish = hopper.warpgroup_mma_wait
show_to_copies = hopper.fence_async_shared
allocate = tl.allocate_shared_memory
run_apart = tl.warp_specialize
synchronize = getattr(tl, "barrier", None) or tl.thread_barrier
BARRIER = tl.constexpr(hopper.mbarrier.MBarrierLayout())


@gluon.jit
def added(left, right):
    return left + right


@gluon.jit
def running_sum(values):
    """The sums of the values up to each one."""
    return tl.associative_scan(values, 0, added)
'''
"""The head of every generated module: imports, names, and functions that Gluon lacks."""


def gluon_text(lines: Iterable[str]) -> Iterator[str]:
    """Lines that were written for Triton, where Gluon says it otherwise: vectors of lanes need a
    layout, which the function that they stand in calls `LANES`."""
    for line in lines:
        line = re.sub(r"\btl\.cumsum\((\w+), 0\)", r"running_sum(\1)", line)
        if line.startswith("residue_wide = "):
            line = re.sub(r"tl\.arange\(0, (\d+)\)", r"tl.arange(0, \1, layout=LANES)", line)
        yield line


def gluon_functions(text: str) -> str:
    """Functions that were written for Triton's compiler, for Gluon's."""
    return text.replace("@triton.jit\n", "@gluon.jit\n")


def kept_where(scores: str, comparisons: Sequence[tuple[str, str, str]]) -> str:
    """The scores where all comparisons hold, minus infinity elsewhere.

    In assembly: from tensors of truth values the compiler packs bits and unpacks them again, which
    takes five times as many instructions.

    Args:
        scores: A tensor of float32.
        comparisons: `<`, `<=`, `==` or `!=` and two int32 operands that broadcast to the scores.
    """
    tests = {"<": "lt", "<=": "le", "==": "eq", "!=": "ne"}
    lines, operands = [], [scores]
    for op, left, right in comparisons:
        number = len(operands) + 1
        onto = (".and", ", p") if len(operands) > 1 else ("", "")
        lines.append(f"setp.{tests[op]}{onto[0]}.s32 p, ${number}, ${number + 1}{onto[1]};")
        operands += [left, right]
    assembly = f"{{ .reg .pred p; {' '.join(lines)} selp.f32 $0, $1, 0fFF800000, p; }}"
    registers = ",".join(["=f", "f", *"r" * (len(operands) - 1)])
    return (
        f'tl.inline_asm_elementwise("{assembly}", "{registers}", [{", ".join(operands)}], '
        "dtype=tl.float32, is_pure=True, pack=1)"
    )


def product_layout(columns: int) -> str:
    """Where the registers of a warpgroup hold a product of 64 rows and so many columns."""
    return f"tl.NVMMADistributedLayout([3, 0], [4, 1], [16, {columns}, 16])"


def store_layout(columns: int) -> str:
    """Where they hold rows that go out by pointers, 16 bytes to a thread."""
    across = min(columns // 8, 32)
    return f"tl.BlockedLayout([1, 8], [{32 // across}, {across}], [4, 1], [1, 0])"


def descriptor_type(dtype: DType, box: tuple[int, ...]) -> str:
    """The type of a tensor descriptor parameter whose tiles the products read from shared
    memory."""
    layout = tile_layout(box).removeprefix("tl.")
    return f"tensordesc<{TYPES[dtype]}[{', '.join(map(str, box))}],{layout}>"


def tile_layout(box: tuple[int, ...]) -> str:
    """How such a tile lies in shared memory: rows of 128 bytes, swizzled."""
    return f"tl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank={len(box)})"
