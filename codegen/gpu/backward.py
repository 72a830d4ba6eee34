"""Attention backward on GPUs: from the tensors of a call to the launches of its kernels.

Plans are remembered, so a call like the last one costs little more than its launches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from patterncc.codegen.backward_tensors import BackwardTensors
from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.backward_plan import BackwardPlanner
from patterncc.codegen.gpu.launch import multiprocessors_of, require_triton, target_of
from patterncc.codegen.gpu.memory import Room
from patterncc.codegen.gpu.signature import Kept, call_signature
from patterncc.codegen.gpu.steps import (
    NO_TABLES,
    all_serve,
    bind_all,
    current_device,
    index_of,
    layout_of,
    named_operands,
    problem_of,
    run_here,
    shapes_of,
    term_operands,
    term_values,
    with_contiguous_rows,
)
from patterncc.codegen.gpu.table_gradients import TableGradients, wanted_sums
from patterncc.codegen.score.values import NO_VALUES, Rows, ScoreValues
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.score.terms import PLAIN, ScoreTerms

if TYPE_CHECKING:
    from pathlib import Path

    from patterncc.codegen.gpu.backward_plan import TunedGradients
    from patterncc.codegen.gpu.bound_launch import BoundLaunch
    from patterncc.codegen.gpu.pass_plan import Lowered

Gradients: TypeAlias = tuple[
    torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, Mapping[str, torch.Tensor]
]
"""Of query, key and value, None for those that were not asked for, and of tables by name."""

ROW_OPERANDS = ("query", "grad_out", "key", "value", "out")
"""The tensors whose rows kernels read as they lie."""


class Backward:
    """Attention backward of one pattern on GPUs: compiles what a call needs once and launches it.

    Every kernel writes each of its results once and adds in a fixed order, so repeated calls give
    the same bits, unless `deterministic=False` allows the query's gradient to differ.

    Args:
        lower: Gives the pattern's passes for a tile shape, both directions of each, from the most
            special alternative to one that assumes nothing.
        config: Of the kernels; None takes what `tuned` has, else the defaults for each problem and
            device, which load by descriptors where the device has them and the tensors' layout
            allows them, else by pointers.
        folder: Where generated sources are written; the user's cache by default.
        tuned: The configs that were tuned for a call, asked once for each that is planned.
        terms: Which logits entered the softmax.
        lower_rows: As of `BackwardPlanner`.
        isolates: As of `Problem`.
        deterministic: Must repeated calls give the same bits?
        one_pass: May all gradients be computed in one pass, where that is chosen
            (`one_pass_choice`)? It takes float32 sums of the query's size. Deterministic calls with
            a `config`, which is of two kernels, are not.

    Raises:
        UnsupportedError: Triton is missing.
    """

    def __init__(
        self,
        lower: Lowered,
        *,
        lower_rows: Lowered | None = None,
        config: BackwardConfig | None = None,
        folder: Path | None = None,
        tuned: TunedGradients | None = None,
        terms: ScoreTerms = PLAIN,
        isolates: bool | None = None,
        deterministic: bool = True,
        one_pass: bool = True,
    ) -> None:
        self._terms = terms
        self.planner = BackwardPlanner(
            lower,
            config or BackwardConfig(),
            tuned,
            lower_rows=lower_rows,
            one_pass=one_pass and (config is None or not deterministic),
            in_turn=deterministic,
        )
        require_triton()
        self._folder = folder
        self._isolates = isolates
        self._kept: Kept[ReadyBackward] = Kept()

    def __call__(
        self,
        grad_out: torch.Tensor,
        grad_lse: torch.Tensor | None,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        *,
        env: Mapping[str, int],
        scale: float,
        tables: Mapping[str, torch.Tensor] = NO_TABLES,
        needs_query: bool = True,
        needs_key_value: bool = True,
        score_values: ScoreValues = NO_VALUES,
        table_gradients: Mapping[str, torch.Tensor] = NO_TABLES,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Runs the kernels on the current stream.

        Never waits for the device and allocates from torch alone, so a CUDA graph can capture it
        once a first call has compiled the kernels. Beside the gradients it allocates one float32
        for each row of each head, and for patterns of several passes, unless they are float32,
        the float32 sums that a pass leaves for the next. One pass of all gradients allocates
        float32 sums of the query's size.

        Args:
            grad_out, grad_lse, query, key, value, out, lse: As in `BackwardTensors`; a last axis
                that is not contiguous is copied.
            env: `q_offset`, and the other scalars that the pattern reads, by name.
            scale: Of the scores; finite.
            tables: As of the forward.
            needs_query: Is the query's gradient asked for?
            needs_key_value: Are those of key and value?
            score_values: What the score terms read.
            table_gradients: By the name of a table that the score terms read, what its gradient is
                added to: float32, contiguous, of the table's shape.

        Returns:
            The gradients of query, key and value, contiguous, of the query's dtype; None for those
            that were not asked for.

        Raises:
            ArgumentError: A tensor has not the shape, dtype or device that it must have; names it.
            UnsupportedError: The device, dtype, a size or a number has no kernel.
            ConfigError: The config given at construction is illegal for these tensors or this
                device; a number or table is missing, or a table of another kind.
        """
        tensors = BackwardTensors(grad_out, grad_lse, query, key, value, out, lse)
        signature = (
            *call_signature(tensors, env, scale, tables, score_values),
            needs_query,
            needs_key_value,
            *table_gradients,
        )
        ready = self._kept.get(signature)
        if ready is None:
            ready = self.ready(
                tensors,
                env=env,
                scale=scale,
                tables=tables,
                needs_query=needs_query,
                needs_key_value=needs_key_value,
                score_values=score_values,
                with_gradients=tuple(table_gradients),
            )
            self._kept.keep(signature, ready)
        *grads, of_tables = ready(tensors, tables, score_values)
        for name, total in table_gradients.items():
            total += of_tables[name]
        return grads[0], grads[1], grads[2]

    def ready(
        self,
        tensors: BackwardTensors,
        *,
        env: Mapping[str, int],
        scale: float,
        tables: Mapping[str, torch.Tensor] = NO_TABLES,
        needs_query: bool = True,
        needs_key_value: bool = True,
        score_values: ScoreValues = NO_VALUES,
        with_gradients: Sequence[str] = (),
    ) -> ReadyBackward:
        """Checks and plans a call, and compiles the kernels that it needs; as `Forward.ready`.

        Args:
            tensors: Of the call.
            env, scale, tables, needs_query, needs_key_value, score_values: As above.
            with_gradients: The tables that the score terms read whose gradients are asked for.

        Raises:
            ArgumentError, UnsupportedError, ConfigError: As above.
        """
        _check(tensors)
        grad_out, grad_lse, query, key, value, out, lse = tensors
        terms = self._terms
        given = term_values(terms, score_values, query.device)
        wanted = wanted_sums(terms, with_gradients)
        of_query = needs_query or bool(wanted.rows)  # the kernel's, if of no further use
        rooms = {
            "grad_query": Room(query.shape, query.dtype, query.device) if of_query else None,
            "grad_key": Room(key.shape, key.dtype, key.device) if needs_key_value else None,
            "grad_value": Room(value.shape, value.dtype, value.device) if needs_key_value else None,
            "delta": Room(lse.shape, torch.float32, lse.device),
        }
        steps: tuple[BoundLaunch, ...] | None = None
        shapes: dict[str, Sequence[int]] = {}
        if out.numel() and key.shape[2]:
            steps = ()
            if needs_query or needs_key_value or with_gradients:
                by_rows = with_contiguous_rows((query, grad_out, key, value, out))
                operands = dict(zip(ROW_OPERANDS, by_rows, strict=True))
                if grad_lse is not None:
                    operands["grad_lse"] = grad_lse.unsqueeze(3)
                launches = self.planner.plan(
                    problem_of(query, key, value, terms, isolates=self._isolates),
                    target_of(query.device),
                    [layout_of(name, tensor) for name, tensor in operands.items()],
                    env,
                    scale,
                    shapes_of(tables),
                    multiprocessors=multiprocessors_of(query.device),
                    needs_query=needs_query,
                    needs_key_value=needs_key_value,
                    needs_entries=bool(wanted.rows),
                    reaches=wanted.reaches,
                    real_values=given,
                )
                steps = bind_all(launches, tables, query.device, self._folder)
                shapes = {name: shape for one in launches for name, shape, _ in one.buffers}
        rows = Rows.of(query, key, env)
        return ReadyBackward(
            steps,
            TableGradients.of(with_gradients, terms, rows, score_values, shapes, query.device)
            if with_gradients
            else None,
            {name: room for name, room in rooms.items() if room is not None},
            query.device,
            index_of(query.device),
            needs_query,
        )


@dataclass(frozen=True, slots=True)
class ReadyBackward:
    """A call that is planned: what is left is memory for its results, and its launches.

    Attributes:
        steps: Its launches in order; None where there is no row or no key.
        tables: How gradients of tables come about; None where none are asked for.
        rooms: Memory for the gradients and for `delta`, by name.
        device: Where all tensors are.
        index: Its number, if it is a GPU; -1 if not.
        needs_query: Is the query's gradient asked for?
    """

    steps: tuple[BoundLaunch, ...] | None
    tables: TableGradients | None
    rooms: Mapping[str, Room]
    device: torch.device
    index: int
    needs_query: bool

    def serves(self, tables: Mapping[str, torch.Tensor]) -> bool:
        """As of `ReadyForward`."""
        return all_serve(self.steps, tables)

    def __call__(
        self,
        tensors: BackwardTensors,
        tables: Mapping[str, torch.Tensor] = NO_TABLES,
        score_values: ScoreValues = NO_VALUES,
    ) -> Gradients:
        """Runs the call, as `Backward` does; the gradients of tables are float32."""
        index = self.index
        if index >= 0 and index != current_device():
            with torch.cuda.device(index):
                return self(tensors, tables, score_values)
        grad_out, grad_lse, query, key, value, out, lse = tensors
        made = {name: room() for name, room in self.rooms.items()}
        operands = {**made, "lse": lse.contiguous()}
        if self.steps is None:
            for result in made.values():
                result.zero_()
            if grad_lse is not None:
                operands["delta"] = -grad_lse
        elif self.steps:
            by_rows = with_contiguous_rows((query, grad_out, key, value, out))
            operands |= zip(ROW_OPERANDS, by_rows, strict=True)
            if grad_lse is not None:
                operands["grad_lse"] = grad_lse
            # What passes hand on: float32 gradients can hold it themselves.
            operands |= {f"{name}_state": result for name, result in made.items()}
            if tables:
                operands |= named_operands(tables)
            if score_values.tables:
                operands |= term_operands(score_values)
            run_here(self.steps, operands, index)
        of_tables = {} if self.tables is None else self.tables(score_values, operands)
        grad_query = made.get("grad_query") if self.needs_query else None
        return grad_query, made.get("grad_key"), made.get("grad_value"), of_tables


def _check(tensors: BackwardTensors) -> None:
    """Refuses what the kernels would misread.

    Raises:
        ArgumentError: Names the tensor, what it is and what it must be.
    """
    grad_out, grad_lse, query, _, value, out, lse = tensors
    rows = tuple(query.shape[:3])
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    checks = [
        ("grad_out", grad_out, (*rows, value.shape[3]), query.dtype),
        ("out", out, (*rows, value.shape[3]), query.dtype),
        ("lse", lse, rows, wide),
    ]
    if grad_lse is not None:
        checks.append(("grad_lse", grad_lse, rows, wide))
    for name, tensor, shape, dtype in checks:
        given = (tuple(tensor.shape), tensor.dtype, tensor.device)
        if given != (shape, dtype, query.device):
            raise ArgumentError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; it must be "
                f"{dtype} {list(shape)} on {query.device}"
            )
