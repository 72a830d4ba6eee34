"""The texts of a Gluon forward kernel about a warpgroup's rows and one tile: scores, weights,
weighted values, and what becomes of the rows at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.forward_source import PEAK_FLOOR
from patterncc.codegen.gpu.gluon.access_source import GluonAccess
from patterncc.codegen.gpu.gluon.mask_source import TileMask
from patterncc.codegen.gpu.gluon.reasons import reason_against
from patterncc.codegen.gpu.gluon.term_source import TileTerms
from patterncc.codegen.gpu.gluon.tile_source import VisitedTiles
from patterncc.codegen.gpu.gluon.warps import ROWS, query_in_registers, warps_of
from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.gpu.kernel_text import INDENT
from patterncc.codegen.gpu.sweep_source import emit_loops
from patterncc.codegen.gpu.tile_source import Computed, check_program
from patterncc.codegen.listing import kernel_mask
from patterncc.dsl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem

_NOTHING = 'float("-inf")'


class TileWriter:
    """What writers of whole kernels have in common.

    Args:
        program: The pattern, or one pass of it.
        problem: The shape class.
        config: How to build the kernel.
        resumes: It starts from what an earlier pass left.
        hands_on: It leaves its result for a later pass, instead of the output.
    """

    def __init__(
        self,
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        resumes: bool,
        hands_on: bool,
    ) -> None:
        check_program(program, problem, config)
        reason = reason_against(program, problem)
        if reason is not None:
            raise ConfigError(f"emitter='gluon' is impossible: {reason}", ("triton",))
        self._program = program
        self._problem = problem
        self._config = config
        self._resumes = resumes
        self._hands_on = hands_on
        self._warps = warps_of(config)
        self._access = GluonAccess(problem, config, program.tiling, hands_on=hands_on)
        nest = emit_loops(program.forward)
        moves = self._access.moves_boxes
        self._mask = TileMask(kernel_mask(program), nest.documents, moves_boxes=moves)
        self._terms = TileTerms(problem.terms, program.tiling, "SCORES", resumes=resumes)
        self._computed = Computed(program, "forward", True, self._terms.exprs)
        self._visited = VisitedTiles(program, config, nest, self._computed.leaves, problem.group)
        pointers = [KernelParameter("lse_ptr", "*fp32", 4)]
        if resumes or hands_on:
            pointers.append(KernelParameter("state_ptr", "*fp32", 16))
        self._repairs = problem.isolates is not False and any(
            loop.kind == "partial" for loop in nest.loops
        )
        scale = [KernelParameter("scale", "fp32")] if self._terms.scale else []
        self._parameters = tuple(self._computed.parameters(self._access, pointers, scale))

    # -------------------------------------------------------------------------------- hooks

    def _keep_weights(self) -> Iterator[str]:
        """Lines after the weights of a tile, before the next tile's."""
        yield from ()

    def _look(self) -> Iterator[str]:
        """Sets `again`: may the warpgroup's rows be spoiled?"""
        raise NotImplementedError

    def _noted(self) -> Iterator[str]:
        raise NotImplementedError

    # -------------------------------------------------------------------------------- rows

    def _rows(self) -> Iterator[str]:
        """Bounds, the warpgroup's rows, and what the mask asks of them alone."""
        yield from self._visited.bounds()
        yield ""
        yield "# What the mask asks of the row alone."
        layout = "tl.SliceLayout(1, SCORES)"
        yield f"rows = row_first + part * {ROWS} + tl.arange(0, {ROWS}, layout={layout})"
        yield "row_exists = rows < q_len"
        if self._program.tiling.q_step > 1:
            yield f"call_rows = rows * {self._program.tiling.q_step} + row_class"
        yield "q = q_offset + rows[:, None]"
        yield from self._mask.held_lines
        yield from self._terms.program_lines

    def _query_operand(self) -> Iterator[str]:
        """The query as the products read it."""
        yield "asked = query.load(QUERY)" if query_in_registers(self._config) else "asked = query"

    def _earlier_passes(self) -> Iterator[str]:
        """The peak and the sum of weights that earlier passes left."""
        yield "# Where the earlier passes ended: one key of weight 1, unless a row saw none."
        yield f"peak = {self._access.load_row_numbers('lse', _NOTHING)}"
        # A maximum may drop a NaN; the sum keeps it.
        yield f"total = tl.where(peak == {_NOTHING}, 0.0, 1.0 + 0.0 * peak)"
        yield f"peak = tl.maximum(peak, {PEAK_FLOOR})"

    def _no_out(self) -> str:
        width = self._problem.value_head_dim
        return f"out = tl.full([{ROWS}, {width}], 0.0, tl.float32, layout=OUT)"

    # -------------------------------------------------------------------------------- a tile

    def _ask_scores(self, stage: str = "stage") -> str:
        tile = f"key_tiles.index({stage}).reshape([BLOCK_K, {self._problem.head_dim}])"
        return (
            f"scores = multiply(asked, {tile}.permute((1, 0)), no_scores, "
            "use_acc=False, is_async=True)"
        )

    def _logits(self) -> Iterator[str]:
        """What score terms make of a tile's scores."""
        if self._terms.reads_key:
            yield "k = k_box + columns"
        yield from self._terms.tile_lines

    def _weights(self) -> Iterator[str]:
        scale = self._terms.scale
        yield f"new_peak = tl.maximum(peak, tl.max(scores, 1){scale})"
        yield f"weights = tl.exp2(scores{scale} - new_peak[:, None])"
        yield "decay = tl.exp2(peak - new_peak)"
        yield "total = total * decay + tl.sum(weights, 1)"
        yield "peak = new_peak"

    def _decayed(self) -> str:
        return f"out = out * {per_row_of_out('decay')}"

    def _rounded(self) -> str:
        # Here and not where they are computed: loops carry pairs of 16-bit numbers apart.
        return f"rounded = tl.convert_layout(weights.to(tl.{self._problem.dtype}), WEIGHTS)"

    def _add_values(self, stage: str) -> str:
        tile = f"value_tiles.index({stage}).reshape([BLOCK_K, {self._problem.value_head_dim}])"
        return f"out = multiply(rounded, {tile}, out, is_async=True)"

    # -------------------------------------------------------------------------------- the end

    def _finish(self) -> Iterator[str]:
        access = self._access
        yield from self._normalised()
        if self._repairs:
            yield from self._look()
            yield from self._noted()
            if self._resumes:
                yield "# What rows started from is kept for the repair."
                yield "row_exists = row_exists & (again == 0)"
        if not self._resumes:
            yield access.row_numbers_address("lse")
        yield from self._log_total()
        yield access.store_row_numbers("lse")
        yield from self._store_place()
        if not self._repairs:
            yield from self._store()
            return
        yield "if again == 0:"
        yield from (INDENT + line for line in self._store())

    def _store_place(self) -> Iterator[str]:
        """Where pointers lead that `_store` needs."""
        if self._hands_on:
            yield from self._access.state_place()
        elif not self._access.stores_box:
            yield from self._access.out_place()

    def _store(self) -> Iterator[str]:
        """The output of the warpgroup's rows, or what a later pass starts from."""
        access = self._access
        if self._hands_on:
            yield from access.store_state()
        elif access.stores_box:
            yield "# The rows go out from where the query was."
            yield f"query.store(out.to(tl.{self._problem.dtype}))"
            yield "show_to_copies()"
            place = f"[batch, head, row_first + part * {ROWS}, 0]"
            yield f"copy_out(out_desc_0, {place}, query_tiles.index(part))"
            yield "copied_out(0)"
        else:
            yield from access.store_out()

    def _normalised(self) -> Iterator[str]:
        """`out`, divided by the sum of weights."""
        yield ""
        yield "# Rows without keys: 0, and the logarithm of the sum is -inf."
        yield "empty = total == 0.0"
        yield "inverse = 1.0 / tl.where(empty, 1.0, total)"
        yield f"out = tl.where({per_row_of_out('empty')}, 0.0, out * {per_row_of_out('inverse')})"

    def _log_total(self) -> Iterator[str]:
        """`lse` as it is returned or, in powers of two, handed on."""
        unit = "" if self._hands_on else " * 0.6931471805599453"
        yield "log_total = peak + tl.log2(tl.where(empty, 1.0, total))"
        yield f"lse = tl.where(empty, {_NOTHING}, log_total{unit})"


def per_row_of_out(name: str) -> str:
    """A number of each row of the scores, for the rows of the output."""
    return f"tl.convert_layout({name}, tl.SliceLayout(1, OUT))[:, None]"


def per_row_of_scores(numbers: str) -> str:
    """A number of each row of the output, for the rows of the scores."""
    return f"tl.convert_layout({numbers}, tl.SliceLayout(1, SCORES))"
