"""Which emitter writes the forward kernels of a pattern where nothing was tuned, and why.

By counted work, as the choice among passes and of the width of key tiles: it depends on the pattern
and the problem, and of a call on its run-time numbers alone (`counted_pattern`). What a pair of a
visited tile takes, what score terms add to it, and what a query tile takes besides, was fitted to
times on one H200 (docs/gluon.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from patterncc.codegen.choice import counted_work
from patterncc.codegen.counted_call import REFERENCE_LENGTH
from patterncc.codegen.gpu.config import Emitter, KernelConfig, default_config
from patterncc.codegen.gpu.forward_source import emit_forward
from patterncc.codegen.gpu.gluon.forward_source import emit_gluon_forward
from patterncc.codegen.gpu.gluon.reasons import HOPPER, problem_reason, reason_against
from patterncc.codegen.gpu.gluon.steady_writer import keeps_peak
from patterncc.codegen.gpu.mask_source import beyond_limits, is_limit
from patterncc.codegen.gpu.term_operations import Operations, pair_operations
from patterncc.codegen.key_width import COSTS, key_width
from patterncc.codegen.listing import kernel_mask
from patterncc.codegen.patch_choice import with_numbers_of_call
from patterncc.dsl.loader import load
from patterncc.dsl.mask import Const, FloorDiv, Mod, Predicate, variables, walk

if TYPE_CHECKING:
    from patterncc.codegen.gpu.kernel_source import KernelSource
    from patterncc.codegen.ir import Passes
    from patterncc.codegen.problem import Problem
    from patterncc.dsl.pattern import Pattern

Lower: TypeAlias = "Callable[[int, int, Emitter], Passes]"
"""Gives the passes for a tile shape `(block_q, block_k)`, in tiles that an emitter's kernels visit
(`config.visits_patches`)."""


@dataclass(frozen=True, slots=True)
class EmitterChoice:
    """What writes the forward kernels of untuned calls.

    Attributes:
        config: Of Gluon's kernels; None: Triton's, with its own default.
        reason: Why, in words.
    """

    config: KernelConfig | None
    reason: str

    def for_rows(self, q_len: int) -> EmitterChoice:
        """The choice for a call of so many rows: short ones, which were not measured, stay with
        Triton."""
        if self.config is None or q_len >= self.config.block_q:
            return self
        return EmitterChoice(None, f"{q_len} rows are less than Gluon's {self.config.block_q}")

    @property
    def name(self) -> Emitter:
        """The emitter."""
        return "triton" if self.config is None else self.config.emitter


@dataclass(frozen=True, slots=True)
class _Speed:
    """What a kernel takes, in units of no meaning: `pair` for each pair of a visited tile, for each
    row as much as `start` pairs, and for each pair what its score terms take, by `Operations`."""

    pair: float
    start: float
    simple: float
    special: float

    def cost(self, pairs: float, rows: float, terms: Operations) -> float:
        of_terms = self.simple * terms.simple + self.special * terms.special
        return self.pair * (pairs + self.start * rows) + of_terms * pairs


_TRITON: Mapping[int, _Speed] = {
    128: _Speed(1 / 473, 120, 3.2e-5, 3.3e-4),
    64: _Speed(1 / 406, 175, 8.0e-5, 7.6e-4),
}
"""Of Triton's 64x64 tiles, by head dimension."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """A tile shape of Gluon's kernels.

    Attributes:
        config: It.
        exact: Of passes where each tile finds its peak.
        kept: Of those where full tiles keep it.
    """

    config: KernelConfig
    exact: _Speed
    kept: _Speed


_GLUON: Mapping[int, tuple[_Shape, ...]] = {
    128: (
        _Shape(
            KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon"),
            _Speed(1 / 655, 270, 4.7e-5, 4.4e-4),
            _Speed(1 / 760, 400, 4.7e-5, 4.4e-4),
        ),
        _Shape(
            KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon"),
            _Speed(1 / 565, 145, 2.9e-5, 3.6e-4),
            _Speed(1 / 655, 217, 2.9e-5, 3.6e-4),
        ),
    ),
    64: (
        _Shape(
            KernelConfig(64, 128, 4, 2, "descriptor", emitter="gluon"),
            _Speed(1 / 478, 258, 7.3e-5, 7.3e-4),
            _Speed(1 / 533, 345, 7.3e-5, 7.3e-4),
        ),
    ),
}
"""What was measured, by head dimension."""


_DOCUMENTS = 16
"""Packed documents that are counted with, of 1024 tokens: of 16 and of 64 the same kernel was the
fastest at head dimension 128, of fewer there is less to gain."""


_MOST_COMPARISONS = 2
"""Of keys, besides limits that must all hold: three spill a hundred bytes and more."""

_MOST_SWEEPS = 15
"""Runs of key tiles whose bounds the 24 registers of a loading warp hold: of the library, programs
of 16 and more spill 256 bytes and up there (docs/gluon.md)."""


def choose_emitter(
    pattern: Pattern,
    problem: Problem,
    target: str,
    lower: Lower,
    sizes: Mapping[str, int] | None = None,
) -> EmitterChoice:
    """The emitter with the least counted work.

    Args:
        pattern: The pattern.
        problem: The shape class.
        target: As in `check_config`.
        lower: Gives its programs.
        sizes: Sizes by which the pattern divides.
    """
    if target != HOPPER:
        return EmitterChoice(None, f"Gluon kernels are written for {HOPPER} alone")
    reason = problem_reason(problem)
    if reason is not None:
        return EmitterChoice(None, f"no Gluon kernel: {reason}")

    base = default_config(problem, target)
    width = key_width(
        pattern,
        lambda block_k: lower(base.block_q, block_k, "triton"),
        base.block_k,
        dict(sizes or {}),
    )
    passes = lower(base.block_q, width, "triton")
    in_patches = any(program.patches is not None for program in passes)
    reason = None if in_patches else _obstacle(passes, problem)
    if reason is not None:
        return EmitterChoice(None, f"no Gluon kernel: {reason}")
    shapes = []
    for shape in _GLUON[problem.head_dim]:
        programs = lower(shape.config.block_q, shape.config.block_k, "gluon")
        against = _obstacle(programs, problem) or too_many_registers(programs, shape.config)
        if against is None:
            shapes.append((shape, programs))
        reason = reason or against
    if not shapes:
        return EmitterChoice(None, f"no Gluon kernel: {reason}")

    own = _TRITON[problem.head_dim]
    pair = own.pair * COSTS.get(width, 1.0) * base.block_k / width
    terms = pair_operations(problem.terms)
    least = _counted(pattern, passes, replace(own, pair=pair), terms, sizes)
    best = None
    for shape, programs in shapes:
        exact = [_counted(pattern, (each,), shape.exact, terms, sizes) for each in programs]
        kept = [
            _counted(pattern, (each,), shape.kept, terms, sizes)
            if keeps_peak(each, problem)
            else cost
            for each, cost in zip(programs, exact, strict=True)
        ]
        config = shape.config
        found = ((config, sum(exact)), (replace(config, peaks="kept"), sum(kept)))
        for config, cost in found:
            if cost < least:
                best, least = config, cost
    if best is None:
        than = " than patches of a raster" if in_patches else ""
        configs = [shape.config for shape, _ in shapes]
        tiles = " or ".join(f"{each.block_q}x{each.block_k}" for each in configs)
        return EmitterChoice(None, f"by counted work Gluon's {tiles} tiles take longer{than}")
    reason = f"the least counted work in {best.block_q}x{best.block_k} tiles"
    if best.peaks == "kept":
        reason += ", full ones keep the peak"
    return EmitterChoice(best, reason)


def counted_number(value: int) -> int:
    """What a run-time number of a call is counted as: the nearest power of two, so that a pattern
    is counted a few times, however many values come, and has few kernels."""
    size = abs(value)
    lower = 1 << max(size.bit_length() - 1, 0)
    nearest = lower if size * size <= 2 * lower * lower else 2 * lower
    return (1 if value > 0 else -1) * nearest if value else 0


def counted_pattern(
    pattern: Pattern, sizes: Mapping[str, int], numbers: Mapping[str, int]
) -> Pattern:
    """A pattern as `choose_emitter` counts it for calls with these run-time numbers.

    Args:
        pattern: The pattern.
        sizes: Sizes by which it divides.
        numbers: Values of its run-time numbers, by name, those that are known. Where it is about a
            raster, they are the raster's and are taken as they are.
    """
    if not numbers:
        return pattern
    found = with_numbers_of_call(pattern, sizes, numbers)
    if found is not pattern:
        return found
    values = {name: counted_number(value) for name, value in numbers.items()}
    return load(pattern.structure, file=None, name=None, **values)


def emitter_of(config: KernelConfig) -> Callable[..., KernelSource]:
    """What writes the forward kernels of a config."""
    return emit_gluon_forward if config.emitter == "gluon" else emit_forward


def _obstacle(passes: Passes, problem: Problem) -> str | None:
    """Why no Gluon kernel should compute some pass, or None."""
    for program in passes:
        reason = reason_against(program, problem)
        if reason is not None:
            return reason
    return None


def _counted(
    pattern: Pattern,
    passes: Passes,
    speed: _Speed,
    terms: Operations,
    sizes: Mapping[str, int] | None,
) -> float:
    work = counted_work(pattern, passes, sizes, documents=_DOCUMENTS)
    pairs = (work.full + work.partial) * passes[0].block_q * passes[0].block_k
    return speed.cost(pairs, REFERENCE_LENGTH * len(passes), terms)


def too_many_registers(passes: Passes, config: KernelConfig) -> str | None:
    """Why the registers of some warp would not suffice in a tile shape, or None: as compiling the
    library says (docs/gluon.md).

    The warp that loads computes the bounds of all sweeps. A warpgroup that computes has room for
    any mask beside 64 rows; where there are two of them, the mask must be a simple one.

    Args:
        passes: The pattern in these tiles.
        config: The tile shape.
    """
    for program in passes:
        sweeps = len(program.forward)
        if sweeps > _MOST_SWEEPS:
            return (
                f"key tiles come in {sweeps} runs, and the bounds of more than {_MOST_SWEEPS} "
                "take more registers than the warp that loads has"
            )
        mask = kernel_mask(program)
        reason = costly_mask(mask) if config.num_warps > 4 else _slow_division(mask)
        if reason is not None:
            return reason
    return None


def costly_mask(mask: Predicate) -> str | None:
    """Why the registers of two warpgroups would not suffice for a mask, or None: known from
    compiling the library."""
    reason = _slow_division(mask)
    if reason is not None:
        return reason
    rest = beyond_limits(mask)
    if len(rest) > _MOST_COMPARISONS or not all(map(is_limit, rest)):
        return "its mask is more than limits that must all hold, which takes registers"
    return None


def _slow_division(mask: Predicate) -> str | None:
    """Whether it divides keys by what is no power of two, in words: bounds of sweeps that count in
    such steps spill hundreds of bytes in the warp that loads."""
    for node in walk(mask):
        if isinstance(node, (FloorDiv, Mod)) and "k" in variables(node.value):
            divisor = node.divisor
            if not (isinstance(divisor, Const) and divisor.value & (divisor.value - 1) == 0):
                return "its mask divides keys by what is no power of two, which takes registers"
    return None
