"""What the operators run on GPUs: checked and planned once for all calls that are alike.

What calls have in common is read off their arguments, so each one is as good as checked itself. A
table's entries are the exception: they may change, and are looked at where that is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from patterncc import launchers, programs
from patterncc.arguments import check_backward_tensors
from patterncc.codegen.backward_tensors import BackwardTensors
from patterncc.codegen.gpu.signature import Kept, inputs_signature, layout_signature
from patterncc.codegen.score.values import NO_VALUES
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.pattern import SegmentsType
from patterncc.dsl.score.terms import PLAIN
from patterncc.prepared import BACKWARD, Options, Prepared, look_into, prepare, wanted_gradients

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patterncc.codegen.gpu.backward import ReadyBackward
    from patterncc.codegen.gpu.forward import ReadyForward
    from patterncc.codegen.gpu.signature import Signature
    from patterncc.codegen.score.values import ScoreValues

NO_TABLES: dict[str, Tensor] = {}
_FIRST = Options._fields.index("numbers") + 1  # the options that most calls are given


class Planned(NamedTuple):
    """Calls that are alike.

    Attributes:
        call: What they are.
        ready: Runs them.
        values: What their score terms read where they have no tables.
        tabled: Whether they have tables, the pattern's or the terms'.
    """

    call: Prepared
    ready: ReadyForward
    values: ScoreValues
    tabled: bool

    def with_tables(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        tables: Mapping[str, Tensor],
        values: ScoreValues,
    ) -> tuple[Tensor, Tensor]:
        """Runs a call with the tables of its pattern and what its score terms read."""
        return self.ready(query, key, value, _narrow_all(self.call, tables), values)


class PlannedBackward(NamedTuple):
    """Backward calls that are alike.

    Attributes:
        call: What they are.
        ready: Runs them.
        values: What their score terms read where they have no tables.
        inputs: Which of the gradients of query, key and value are asked for.
        tables: The tables of the score terms of which gradients are.
    """

    call: Prepared
    ready: ReadyBackward
    values: ScoreValues
    inputs: tuple[int, ...]
    tables: tuple[str, ...]


_forwards: Kept[Planned] = Kept()
_backwards: Kept[PlannedBackward] = Kept()

# By all but the shapes of the pattern's tables, of which most plans ask the sizes at each call:
# documents are others in number at each step.
_forwards_by_kind: Kept[ReadyForward] = Kept()
_backwards_by_kind: Kept[ReadyBackward] = Kept()


def attn_fwd(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Attention; arguments as of the operator."""
    found = planned(query, key, value, rest)
    if not found.tabled:  # nothing that the plan does not have
        return found.ready(query, key, value, NO_TABLES, found.values)
    options = Options(*rest)
    tables = found.call.named(options)
    return found.with_tables(query, key, value, tables, found.call.score_values(options))


def planned(query: Tensor, key: Tensor, value: Tensor, rest: tuple[Any, ...]) -> Planned:
    """The plan of a call that has these arguments."""
    found = already_planned(query, key, value, rest)
    if found is None:
        signature = (inputs_signature(query, key, value), *_signature(rest))
        found = _forwards.keep(signature, _plan_forward(query, key, value, Options(*rest)))
    return found


def already_planned(
    query: Tensor, key: Tensor, value: Tensor, rest: tuple[Any, ...]
) -> Planned | None:
    """The same, if there is one."""
    return _forwards.get((inputs_signature(query, key, value), *_signature(rest)))


def _plan_forward(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Planned:
    call = prepare(query, key, value, options)
    values = call.score_values(options)
    tables = _narrow_all(call, call.named(options))
    text = programs.counted_text(options.pattern, call.sizes, tuple(options.numbers))
    forward = launchers.launcher(text, call.sizes, options.score or PLAIN.text, options.isolate)
    kind = (inputs_signature(query, key, value), *_kind(call, options))
    ready = _forwards_by_kind.get(kind)
    if ready is None or not ready.serves(tables):
        ready = forward.ready(
            query,
            key,
            value,
            env=call.env,
            scale=call.scale,
            tables=tables,
            score_values=values,
        )
        if tables:
            _forwards_by_kind.keep(kind, ready)
    tabled = bool(options.tables)
    return Planned(call, ready, NO_VALUES if tabled else values, tabled)


def attn_bwd(*arguments: Any) -> list[Tensor]:
    """The gradients of attention; arguments as of the operator."""
    tensors, rest = BackwardTensors._make(arguments[:BACKWARD]), arguments[BACKWARD:]
    found = planned_backward(tensors, rest)
    options = Options(*rest)
    if not options.tables:
        grads = found.ready(tensors, NO_TABLES, found.values)
        return [grads[place] for place in found.inputs]  # type: ignore[misc]
    call = found.call
    values = call.score_values(options)
    tables = _narrow_all(call, call.named(options))
    *of_inputs, sums = found.ready(tensors, tables, values)
    results = [of_inputs[place] for place in found.inputs]
    results += [sums[name].to(values.tables[name].dtype) for name in found.tables]
    return results  # type: ignore[return-value]  # those that are asked for are not None


def planned_backward(tensors: BackwardTensors, rest: tuple[Any, ...]) -> PlannedBackward:
    """The plan of a backward call that has these arguments."""
    options = Options(*rest)
    if not options.deterministic and torch.are_deterministic_algorithms_enabled():
        rest = options = options._replace(deterministic=True)
    signature = (layout_signature(tensors), *_signature(rest))
    found = _backwards.get(signature)
    if found is None:
        found = _backwards.keep(signature, _plan_backward(tensors, options))
    return found


def _plan_backward(tensors: BackwardTensors, options: Options) -> PlannedBackward:
    call = prepare(tensors.query, tensors.key, tensors.value, options)
    check_backward_tensors(tensors)
    tables = call.wanted_tables(options)
    needs = wanted_gradients(options, len(call.declared))
    values = call.score_values(options)
    own = _narrow_all(call, call.named(options))
    text = programs.counted_text(options.pattern, call.sizes, tuple(options.numbers))
    backward = launchers.backward_launcher(
        text,
        call.sizes,
        options.score or PLAIN.text,
        options.deterministic,
        options.isolate,
    )
    kind = (layout_signature(tensors), *_kind(call, options))
    ready = _backwards_by_kind.get(kind)
    if ready is None or not ready.serves(own):
        ready = backward.ready(
            tensors,
            env=call.env,
            scale=call.scale,
            tables=own,
            needs_query=needs[0],
            needs_key_value=needs[1] or needs[2],
            score_values=values,
            with_gradients=tables,
        )
        if own:
            _backwards_by_kind.keep(kind, ready)
    inputs = tuple(place for place in range(3) if needs[place])
    kept = NO_VALUES if options.tables else values  # no tensor of a call outlives it here
    return PlannedBackward(call, ready, kept, inputs, tables)


def attn_bwd_bwd(grad_grad_query: Tensor, *_: Any) -> NoReturn:
    """Second derivatives.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(
        f"attention has no second derivatives on {grad_grad_query.device}",
        "take them on the CPU, or from dense attention under `mask(...)`",
    )


def narrow(table: Tensor) -> Tensor:
    """What kernels read: contiguous, numbers as int32. It is made anew at each call, as what a
    table holds may change between calls, or between replays of a graph."""
    return (table.int() if table.dtype == torch.int64 else table).contiguous()


def _narrow_all(call: Prepared, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tables of the pattern by name, as kernels read them; looked into where that is wanted."""
    if tables:
        look_into(call, list(tables.values()))
    return {name: narrow(table) for name, table in tables.items()}


def narrow_all(call: Prepared, tables: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """`_narrow_all` of tables as they travel, those of the score terms last."""
    if not call.declared:
        return NO_TABLES
    return _narrow_all(call, {each.name: t for each, t in zip(call.declared, tables, strict=False)})


def segments(call: Prepared) -> tuple[str, ...]:
    """The tables of a call of which plans ask the number of documents at each call."""
    return tuple(table.name for table in call.declared if isinstance(table.type, SegmentsType))


def _kind(call: Prepared, options: Options) -> Signature:
    """What plans ask of the options of a call that was checked, without the shapes of the pattern's
    tables."""
    count = len(call.declared)
    own = ((table.dim(), table.dtype) for table in options.tables[:count])
    return (*own, options._replace(tables=options.tables[count:]).signature)


def _signature(rest: tuple[Any, ...]) -> Signature:
    """What checks and plans ask of the options of a call."""
    if len(rest) <= _FIRST and not rest[1]:  # spelled out, as this is in the way of every call
        return (rest[0], *rest[2]) if len(rest) == _FIRST else (rest[0],)
    return Options(*rest).signature
