"""Gluon's interface, which changes between releases of Triton, under names of our own.

Generated kernels start with `PRELUDE` and call what it names; no other file knows what Gluon calls
it. Scalars and tensors of registers are written as in Triton, so the module calls Gluon's language
`tl`, and the texts of bounds and masks serve both.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.access_source import TYPES
from patterncc.codegen.gpu.kernel_text import INDENT, indented
from patterncc.codegen.gpu.score_source import TANH

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


FOLLOWING = '''\
@gluon.jit
def following(stage, phase):
    """The next stage of a ring; its phase changes with each round."""
    last = stage == STAGES - 1
    return tl.where(last, 0, stage + 1), tl.where(last, phase ^ 1, phase)
'''
"""Source of what moves on in a ring of stages."""

ADD_OUT = """\
if hasattr(hopper.tma, "async_atomic_add"):
    add_out = hopper.tma.async_atomic_add
else:  # older releases of Triton compile it, but have no name for it
    from triton._C.libtriton.ir import DESCRIPTOR_REDUCE_KIND
    from triton.experimental.gluon.language._core import builtin

    @builtin
    def add_out(descriptor, place, tile, _semantic=None):
        place = _semantic._convert_to_ir_values(place, require_i64=False)
        kind = DESCRIPTOR_REDUCE_KIND.ADD
        _semantic.builder.create_async_tma_reduce(kind, descriptor.handle, place, tile.handle)
"""
"""Source of what adds a tile of shared memory to a tensor in global memory, by the copy engine.

What lies past the end of the tensor is added to nothing. Before its beginning nothing may lie: an
H200 stops at that as at an illegal instruction.
"""

LEAVE_SHARE = '''\
@gluon.jit
def leave_share(share, place):
    """Leaves a product of 64 rows in shared memory as the threads hold it.

    A thread's numbers of eight columns and of rows that are eight apart follow each other: a thread
    stores 16 bytes, and a warp 512 in a row.
    """
    columns: tl.constexpr = share.shape[1]
    share = share.reshape([4, 2, 8, columns // 8, 4, 2]).permute([0, 3, 2, 4, 1, 5])
    place.store(share.reshape(place.shape))
'''
"""Source of what prepares a tile that is added to the query's gradient (`query_sum_source`)."""


_TANH = '''\
@gluon.jit
def hyperbolic_tangent(x):
    """By a power of two; where that overflows, the reciprocal is 0. A reciprocal is one
    instruction; a quotient takes more of them for divisors beyond 2**126."""
    inverse = tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;",
        "=f,f",
        [1.0 + tl.exp2(x * 2.8853900817779268)],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )
    return 1.0 - 2.0 * inverse
'''
"""`TANH` for Gluon, whose kernels are for one target: 900 instructions of a warp for a full tile of
128 keys with soft-capping, and not 1092."""


PAIRS = '''\
@gluon.jit
def packed(weights):
    """Neighbouring columns as 16-bit numbers in one register: loops carry 16-bit numbers apart, and
    would pack them again for the product."""
    even, odd = tl.split(weights.reshape([weights.shape[0], weights.shape[1] // 2, 2]))
    return tl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $2, $1;",
        "=r,f,f",
        [even, odd],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def unpacked(pairs):
    low, high = tl.inline_asm_elementwise(
        "mov.b32 {$0, $1}, $2;",
        "=h,=h,r",
        [pairs],
        dtype=(tl.bfloat16, tl.bfloat16),
        is_pure=True,
        pack=1,
    )
    return tl.join(low, high).reshape([pairs.shape[0], 2 * pairs.shape[1]])
'''
"""Source of what carries weights in bfloat16 from one step of a loop to the next."""

ROW_SUMS = '''\
@gluon.jit
def own_sums(weights):
    """Of each row, what each of the four threads that hold it has of a product of 64 rows."""
    threads = weights.reshape([4, 2, 8, weights.shape[1] // 8, 4, 2])
    return tl.convert_layout(tl.sum(tl.sum(threads, 5), 3), SUMS, assert_trivial=True)


@gluon.jit
def row_sums(sums):
    return tl.convert_layout(tl.sum(sums, 3).reshape([64]), tl.SliceLayout(1, SCORES))
'''
"""Source of what sums rows up without an exchange between threads in each step."""


NOTE = "tl.BlockedLayout([1], [32], [4], [0])"
"""Where the threads of a warpgroup hold a number that all of them know."""

NOTES = "tl.SwizzledSharedLayout(1, 1, 1, [0])"
"""How such numbers lie in shared memory."""


def gluon_text(lines: Iterable[str]) -> Iterator[str]:
    """Lines that were written for Triton, where Gluon says it otherwise: vectors of lanes need a
    layout, which the function that they stand in calls `LANES`."""
    for line in lines:
        line = re.sub(r"\btl\.cumsum\((\w+), 0\)", r"running_sum(\1)", line)
        if line.lstrip().startswith("residue_wide = "):
            line = re.sub(r"tl\.arange\(0, (\d+)\)", r"tl.arange(0, \1, layout=LANES)", line)
        yield line


def gluon_functions(text: str) -> str:
    """Functions that were written for Triton's compiler, for Gluon's."""
    if text == TANH:
        return _TANH
    return text.replace("@triton.jit\n", "@gluon.jit\n")


def function_text(name: str, parameters: Iterable[str], lines: Iterable[str]) -> str:
    """The source of a function of a kernel."""
    signature = "".join(f"{INDENT}{parameter},\n" for parameter in parameters)
    return f"@gluon.jit\ndef {name}(\n{signature}):\n{indented(gluon_text(lines))}\n"


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


def sums_layout() -> str:
    """Where threads hold the `ROW_SUMS` of their own: warps, halves of their rows, rows, threads of
    a row."""
    return "tl.BlockedLayout([1, 2, 1, 1], [1, 1, 8, 4], [4, 1, 1, 1], [3, 2, 1, 0])"


def store_layout(columns: int) -> str:
    """Where they hold rows that go out by pointers, 16 bytes to a thread."""
    across = min(columns // 8, 32)
    return f"tl.BlockedLayout([1, 8], [{32 // across}, {across}], [4, 1], [1, 0])"


def descriptor_type(dtype: DType, box: tuple[int, ...]) -> str:
    """The type of a tensor descriptor parameter whose tiles the products read from shared
    memory."""
    layout = tile_layout(box).removeprefix("tl.")
    return f"tensordesc<{TYPES[dtype]}[{', '.join(map(str, box))}],{layout}>"


def number_descriptor_type(box: tuple[int, ...]) -> str:
    """The type of a descriptor of float32 numbers, which are read one by one."""
    layout = number_layout(box).removeprefix("tl.")
    return f"tensordesc<fp32[{', '.join(map(str, box))}],{layout}>"


def number_layout(box: tuple[int, ...]) -> str:
    """How such numbers lie in shared memory: one after the other."""
    return f"tl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank={len(box)})"


def tile_layout(box: tuple[int, ...]) -> str:
    """How such a tile lies in shared memory: rows of 128 bytes, swizzled."""
    return f"tl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank={len(box)})"
