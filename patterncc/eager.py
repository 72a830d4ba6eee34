"""The short way of a call: plain tensors on a GPU that nothing looks at on their way to kernels.

The dispatcher would hand such a call on to the operator's kernel for GPUs as it is, and would take
longer for that than the launch does. A call that anything takes part in, be it autograd, a mode, a
transform, a graph that is traced or the profiler, is given to the operator. Autocast takes part
where it casts; beneath that the operators have nothing of their own for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from patterncc.codegen.gpu.signature import Kept, inputs_signature, table_kind
from patterncc.codegen.score.values import NO_VALUES, ScoreValues

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from patterncc.codegen.gpu.signature import Signature
    from patterncc.gpu_calls import Planned
    from patterncc.score_call import ScoreSignature
    from patterncc.signatures import Signature as PatternSignature

_torch: Any = torch  # the parts of torch that have no types
_profiling: Callable[[], bool] = _torch.autograd._profiler_enabled
_function_mode: Callable[[], bool] = _torch._C._is_torch_function_mode_enabled
autocasting: Callable[[], bool] = _torch._C._is_any_autocast_enabled  # on whatever device
_modes: Callable[[], int] = getattr(_torch._C, "_len_torch_dispatch_stack", lambda: 0)
_is_zero: Callable[[Tensor], bool] = _torch._C.TensorBase._is_zerotensor  # not in memory
_included: Callable[[], Any] = _torch._C._dispatch_tls_local_include_set

# What the dispatcher looks at besides what tensors ask for: nothing that could do something here.
_key_set: Any = _torch._C.DispatchKeySet
_NOTHING = frozenset(
    keys.raw_repr()
    for keys in (
        _key_set(_torch._C.DispatchKey.BackendSelect),
        _key_set(_torch._C.DispatchKey.BackendSelect)
        | _key_set(_torch._C.DispatchKey.ADInplaceOrView),
    )
)

_PLAIN = (Tensor, torch.nn.Parameter)  # types whose operations nobody has changed
DEFAULTS = (None, None, 0, None)  # of scale, q_offset, layer and layers

calls: Kept[Planned] = Kept()
"""The plans of the calls that went the short way, by `call_signature`."""


def bare(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """May a call with these tensors go the short way?"""
    return (
        type(query) is Tensor
        and type(key) is Tensor
        and type(value) is Tensor
        and query.is_cuda
        and not (
            torch.is_grad_enabled()
            and (query.requires_grad or key.requires_grad or value.requires_grad)
        )
        and _included().raw_repr() in _NOTHING
        and not observed()
        and not (autocasting() and casts(query, key, value))
        # Their numbers are not those in memory.
        and not (query.is_neg() or key.is_neg() or value.is_neg())
    )


def unattended(tensors: Iterable[Tensor | None]) -> bool:
    """Would the dispatcher, beneath autograd, hand these tensors to kernels for GPUs as they are?

    Args:
        tensors: All that an operator is given.
    """
    if observed() or _included().raw_repr() not in _NOTHING:
        return False
    for tensor in tensors:
        if tensor is not None and (
            type(tensor) not in _PLAIN or not tensor.is_cuda or tensor.is_neg() or _is_zero(tensor)
        ):
            return False
    return True


def observed() -> bool:
    """Does anything look at calls that is no dispatch key of a tensor: the profiler, a mode of
    functions or of operators, or forward mode?"""
    return _profiling() or _function_mode() or forward_ad._current_level >= 0 or _modes() > 0


def casts(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """May autocast, as it is now on the device of `query`, change one of these? So it is for all
    types but autocast's own, float64 among them, which it leaves as it is."""
    device = query.device.type
    if not torch.is_autocast_enabled(device):
        return False
    dtype = torch.get_autocast_dtype(device)
    return not (query.dtype == key.dtype == value.dtype == dtype)


def call_signature(
    signature: PatternSignature,
    score: ScoreSignature | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    numbers: tuple[object, ...],
    values: Mapping[str, object],
    isolate: bool | None = None,
) -> Signature | None:
    """All that the checks and the plan of a call depend on; None where an argument is of a type
    that has to be looked at each time.

    Numbers of different types are equal, as `True` and 1 are, and not all are legal: only `int` and
    `float` go the short way, and their types are part of what is returned.

    Args:
        signature: Of the pattern.
        score: Of the score terms.
        query, key, value: The tensors.
        numbers: `scale`, `q_offset`, `layer` and `layers`.
        values: Run-time numbers and tables by name, those of the score terms among them.
        isolate: As of `ops.attend`.
    """
    first = (
        inputs_signature(query, key, value),
        signature.structure,
        signature.defaults,
        None if score is None else score.text,
        isolate,
    )
    if not values and numbers == DEFAULTS and type(numbers[2]) is int:
        return first  # the most usual call
    found: list[Any] = []
    for name, given in values.items():
        kind = type(given)
        if kind is int or kind is float:
            found += (name, kind, given)
        elif isinstance(given, Tensor) and kind in _PLAIN and not _watched(given):
            found += (name, table_kind(given))
        else:
            return None
    for number in numbers:
        if number is not None and type(number) is not int and type(number) is not float:
            return None
    return (*first, *numbers, *map(type, numbers), *found)


def run_with_tables(
    planned: Planned, query: Tensor, key: Tensor, value: Tensor, values: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Runs a call of a plan that has tables.

    Args:
        planned: The plan.
        query, key, value: The tensors.
        values: What the call gives by name.
    """
    call = planned.call
    tables = {table.name: values[table.name] for table in call.declared}
    read = NO_VALUES
    if call.score_numbers or call.score_tables:
        read = ScoreValues(
            {name: float(values[name]) for name in call.score_numbers},
            {name: values[name] for name in call.score_tables},
        )
    return planned.with_tables(query, key, value, tables, read)


def _watched(table: Tensor) -> bool:
    """Does autograd take part in what happens to a table, or is it not as it lies in memory?"""
    return (table.requires_grad and torch.is_grad_enabled()) or table.is_neg()
