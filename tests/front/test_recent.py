"""Calls that are found again without a signature: what they are compared by, and what is kept."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import patterncc
from patterncc import guards, recent
from patterncc.codegen.gpu.signature import forget_all
from patterncc.recent import RecentCalls
from tests.front.inputs import tensors

_torch: Any = torch
DEFAULTS = (None, None, 0, None)
FOUND: Any = object()


class Plan(NamedTuple):
    """A plan whose runs are told apart from those of others."""

    result: object = FOUND
    tabled: bool = False
    values: object = None
    call: Any = SimpleNamespace(declared=(), score_tables=(), score_numbers=())

    def ready(self, *_: object) -> Any:
        return self.result


PLAN: Any = Plan()
needs_guards = pytest.mark.skipif(guards.guards is None, reason="this torch has no tensor guards")


def known(
    *inputs: Tensor, numbers: tuple[Any, ...] = DEFAULTS, plan: Any = PLAN, **values: Any
) -> RecentCalls:
    calls = RecentCalls()
    query, key, value = inputs or tensors()
    calls.add(plan, query, key, value, numbers, values)
    return calls


def finds(
    calls: RecentCalls, inputs: Any, numbers: tuple[Any, ...] = DEFAULTS, **values: Any
) -> bool:
    query, key, value = inputs
    result: Any = calls.run(query, key, value, numbers, values)
    assert result is None or result is FOUND
    return result is FOUND


def test_this_torch_has_guards() -> None:
    # Without them all is right and two microseconds slower: to be known, not to be found out.
    assert guards.guards is not None


@needs_guards
def test_a_call_is_found_again_by_other_tensors_that_are_alike() -> None:
    calls = known()
    for _ in range(2):
        assert finds(calls, tensors())


def shifted(tensor: Tensor) -> Tensor:
    """At an address that is no multiple of 16."""
    memory = tensor.new_empty(tensor.numel() + 1)
    return memory[1:].view(tensor.shape).copy_(tensor)


OTHERS: dict[str, Callable[[Tensor], Any]] = {
    "shape": lambda tensor: tensor[:, :, 1:].contiguous(),
    "strides": lambda tensor: tensor.transpose(1, 2).contiguous().transpose(1, 2),
    "dtype": lambda tensor: tensor.half(),
    "device": lambda tensor: tensor.to("meta"),
    "address": shifted,
    "gradient": lambda tensor: tensor.clone().requires_grad_(),
    "sign": lambda tensor: _torch._neg_view(tensor),
    "type": lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
    "no tensor": lambda tensor: tensor.tolist(),
    "nothing": lambda tensor: None,
}


@needs_guards
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("other", OTHERS)
def test_other_tensors_are_another_call(other: str, place: int) -> None:
    inputs: list[Any] = list(tensors())
    calls = known()
    inputs[place] = OTHERS[other](inputs[place])
    assert not finds(calls, inputs)
    with torch.no_grad():
        assert not finds(calls, inputs)


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*args, **(kwargs or {}))


class FunctionMode(TorchFunctionMode):
    pass


CONTEXTS: dict[str, Callable[[], Any]] = {
    "dispatch mode": Mode,
    "fake tensors": FakeTensorMode,
    "function mode": FunctionMode,
    "autocast": lambda: torch.autocast("cpu"),
    "profiler": torch.profiler.profile,
    "forward mode": _torch.autograd.forward_ad.dual_level,
    "inference mode": torch.inference_mode,
}


@needs_guards
@pytest.mark.parametrize("context", CONTEXTS)
def test_calls_that_something_looks_at_are_others(context: str) -> None:
    inputs, calls = tensors(), known()
    with CONTEXTS[context]():
        assert not finds(calls, inputs)
    assert finds(calls, inputs)


@needs_guards
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_calls_are_found_that_it_leaves_alone(dtype: torch.dtype) -> None:
    inputs = tensors(dtype=dtype)
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    with torch.autocast("cpu", dtype):
        calls, wide, others = known(*inputs), known(*tensors()), known(*tensors(dtype=other))
        for cache in (True, False):
            with torch.autocast("cpu", dtype, cache_enabled=cache):
                assert finds(calls, inputs)
        with torch.autocast("cpu", other):
            assert not finds(calls, inputs)
            assert finds(others, tensors(dtype=other))
        with torch.autocast("cpu", enabled=False):
            assert not finds(calls, inputs)
            assert finds(known(*inputs), inputs)
        assert finds(calls, inputs)
        assert not finds(wide, tensors())
        assert not finds(others, tensors(dtype=other))
    assert not finds(calls, inputs)


@needs_guards
def test_autocast_elsewhere_changes_nothing() -> None:
    inputs, calls = tensors(), known()
    torch.set_autocast_enabled("cuda", True)
    found = finds(calls, inputs)
    torch.set_autocast_enabled("cuda", False)
    assert found


@needs_guards
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_calls_in_transforms_are_others() -> None:
    inputs, calls = tensors(), known()
    seen: list[bool] = []

    def note(query: Tensor) -> Tensor:
        seen.append(finds(calls, (query, *inputs[1:])))
        seen.append(finds(calls, inputs))
        return query.sum()

    torch.func.vmap(note)(inputs[0])
    torch.func.grad(note)(inputs[0])
    make_fx(note)(inputs[0])
    _torch.jit.trace(note, inputs[0], check_trace=False)
    assert seen == [False] * len(seen) and len(seen) >= 8


@needs_guards
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad])
def test_calls_that_could_be_recorded_are_not_kept(mode: Any) -> None:
    # Guards do not tell whether gradients are on.
    for place in range(3):
        inputs = list(tensors())
        inputs[place].requires_grad_()
        with mode():
            calls = known(*inputs)
            assert not finds(calls, inputs)
    slopes = torch.zeros(4, requires_grad=True)
    with mode():
        calls = known(slopes=slopes)
        assert not finds(calls, tensors(), slopes=slopes)


@needs_guards
def test_numbers_are_compared_with_their_types() -> None:
    legal: list[Any] = [DEFAULTS, (None, None, 1, None), (1.0, None, 0, None), (None, 1, 0, 2)]
    others: list[Any] = [
        (None, None, False, None),
        (None, None, True, None),
        (None, None, 0.0, None),
        (1, None, 0, None),
        (True, None, 0, None),
        (None, 1.0, 0, 2),
        (None, True, 0, 2),
        (None, 1, 0, torch.tensor([2, 3])),
        (None, None, torch.tensor([0, 1]), None),
        (torch.tensor([1.0, 2.0]), None, 0, None),
    ]
    for numbers in legal:
        calls = known(numbers=numbers)
        assert [finds(calls, tensors(), other) for other in legal] == [n is numbers for n in legal]
        assert not any(finds(calls, tensors(), other) for other in others)


@needs_guards
def test_values_are_compared_by_name_with_their_types() -> None:
    table, other = torch.ones(4), torch.ones(4)
    calls = known(n=1, slopes=table)
    assert finds(calls, tensors(), n=1, slopes=table)
    assert finds(calls, tensors(), slopes=other, n=1)
    wrong: list[dict[str, Any]] = [
        {},
        {"n": 1},
        {"slopes": table},
        {"n": 2, "slopes": table},
        {"n": 1.0, "slopes": table},
        {"n": True, "slopes": table},
        {"n": table, "slopes": 1},
        {"m": 1, "slopes": table},
        {"n": 1, "slope": table},
        {"n": 1, "slopes": table, "m": 1},
        {"n": 1, "slopes": table[:3]},
        {"n": 1, "slopes": table.double()},
        {"n": 1, "slopes": table.tolist()},
        {"n": 1, "slopes": table.clone().requires_grad_()},
        {"n": 1, "slopes": _torch._neg_view(table)},
    ]
    for values in wrong:
        assert not finds(calls, tensors(), **values), values
    assert not finds(known(), tensors(), n=1)


@needs_guards
def test_the_last_few_are_kept() -> None:
    calls = RecentCalls()
    lengths = range(1, recent.MOST + 1)

    def add(length: int) -> None:
        plan: Any = Plan(length)
        calls.add(plan, *tensors(length), DEFAULTS, {})

    def results() -> list[object]:
        return [calls.run(*tensors(length), DEFAULTS, {}) for length in (*lengths, 9)]

    for length in lengths:
        add(length)
    assert results() == [*lengths, None]
    # One that is met now and then drives out none, one that comes again and again the first.
    for _ in range(recent.PATIENCE - 1):
        add(9)
        assert results() == [*lengths, None]
    add(9)
    assert results() == [None, *lengths[1:], 9]


@needs_guards
def test_threads_may_share_them() -> None:
    calls, wrong = RecentCalls(), list[object]()

    def work(length: int) -> None:
        plan: Any = Plan(length)
        inputs = tensors(length)
        for _ in range(300):
            calls.add(plan, *inputs, DEFAULTS, {})
            found: Any = calls.run(*inputs, DEFAULTS, {})
            if found not in (None, length) or len(calls._calls) > recent.MOST:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(length,)) for length in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_guards
def test_tuning_forgets_them() -> None:
    inputs, calls = tensors(), known()
    assert finds(calls, inputs)
    forget_all()
    assert not finds(calls, inputs)


@needs_guards
def test_nothing_of_a_call_is_kept_alive() -> None:
    inputs, slopes = tensors(), torch.zeros(4)
    calls = known(*inputs, slopes=slopes)
    references = [weakref.ref(each) for each in (*inputs, slopes)]
    assert finds(calls, inputs, slopes=slopes)
    del inputs, slopes
    gc.collect()
    assert [reference() for reference in references] == [None] * 4
    gone = weakref.ref(calls)
    del calls
    gc.collect()
    assert gone() is None
    forget_all()


def test_without_guards_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "guards", None)
    assert not finds(known(), tensors())


def test_they_are_no_part_of_a_value() -> None:
    import pickle

    attn = patterncc.compile("causal")
    attn(*tensors())
    assert attn._recent is not None
    other = pickle.loads(pickle.dumps(attn))
    assert other == attn and hash(other) == hash(attn) and other._recent is None
