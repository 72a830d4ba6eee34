"""The short way of a call: which calls go it, and that it weakens no check."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import patterncc
from patterncc import autograd, eager, gpu_calls
from tests.codegen.interpreter import interpreter
from tests.front.inputs import assert_right, expected, tensors

_torch: Any = torch
STREAMING = "pattern streaming(sinks = 4, window = 24): causal and (k < sinks or q - k < window)"
BY_HEAD = "pattern p(w: int[head]): 0 <= q - k < w[head]"


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets tensors say that they are on a GPU."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*args, **(kwargs or {}))


class FunctionMode(TorchFunctionMode):
    pass


# ------------------------------------------------------------------------------------ which calls


def test_plain_calls_are_bare(on_gpu: None) -> None:
    query, key, value = tensors()
    assert eager.bare(query, key, value)
    with torch.no_grad():
        assert eager.bare(query.requires_grad_(), key, value)
    with torch.inference_mode():
        assert eager.bare(*tensors())


def test_calls_on_cpus_are_not() -> None:
    assert not eager.bare(*tensors())


CONTEXTS: dict[str, Any] = {
    "dispatch mode": Mode,
    "function mode": FunctionMode,
    "profiler": torch.profiler.profile,
    "forward mode": _torch.autograd.forward_ad.dual_level,
}


@pytest.mark.parametrize("case", CONTEXTS)
def test_calls_that_something_looks_at_are_not(on_gpu: None, case: str) -> None:
    inputs = tensors()
    with torch.no_grad():
        with CONTEXTS[case]():
            assert not eager.bare(*inputs)
            assert not eager.unattended(inputs)
        assert eager.bare(*inputs)
        assert eager.unattended((*inputs, None))


@pytest.mark.parametrize("place", range(3))
def test_calls_that_autocast_casts_are_not(on_gpu: None, place: int) -> None:
    inputs = list(tensors(dtype=torch.bfloat16))
    wide = [*inputs]
    wide[place] = inputs[place].float()
    with torch.autocast("cpu", torch.bfloat16):
        assert eager.bare(*inputs)
        assert not eager.bare(*wide)
        assert not eager.bare(*tensors(dtype=torch.float64))  # is looked at, and left
        with torch.autocast("cpu", torch.float16):
            assert not eager.bare(*inputs)
        with torch.autocast("cpu", enabled=False):
            assert eager.bare(*tensors())
        # Beneath the casts operators have nothing of their own for it.
        assert eager.unattended(wide)
        for operator in ("attn_fwd", "attn_bwd"):
            has = [
                _torch._C._dispatch_has_kernel_for_dispatch_key(f"patterncc::{operator}", key)
                for key in ("CUDA", "AutocastCUDA", "AutocastCPU")
            ]
            assert has == [True, False, False]
    torch.set_autocast_enabled("cuda", True)
    elsewhere = eager.autocasting() and eager.bare(*tensors())
    torch.set_autocast_enabled("cuda", False)
    assert elsewhere


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_calls_in_transforms_are_not(on_gpu: None) -> None:
    seen: list[bool] = []

    def note(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.append(eager.bare(query, key, value))
        seen.append(eager.unattended((query, key, value)))
        return query

    inputs = tensors()
    with torch.no_grad():
        torch.func.vmap(note)(*inputs)
    torch.func.grad(lambda query: note(query, *inputs[1:]).sum())(inputs[0])
    _torch.jit.trace(note, inputs, check_trace=False)
    assert seen == [False] * len(seen) and len(seen) >= 6


@pytest.mark.parametrize("place", range(3))
def test_tensors_that_are_not_plain_are_not(on_gpu: None, place: int) -> None:
    class Sub(Tensor):
        pass

    others: list[Any] = [
        lambda tensor: tensor.clone().requires_grad_(),
        lambda tensor: _torch._neg_view(tensor),
        lambda tensor: _torch.Tensor.as_subclass(tensor, Sub),
        lambda tensor: _torch.nn.Parameter(tensor.clone()),
        lambda tensor: tensor.tolist(),
    ]
    for change in others:
        inputs: list[Any] = list(tensors())
        inputs[place] = change(inputs[place])
        assert not eager.bare(*inputs)


def test_what_kernels_can_be_given_at_once(on_gpu: None) -> None:
    plain = torch.ones(3)
    for tensor in (plain, torch.nn.Parameter(plain), None):
        assert eager.unattended((plain, tensor))
    for other in (
        _torch._neg_view(plain),
        _torch._efficientzerotensor((3,)),
        _torch.Tensor.as_subclass(plain, _torch.nn.Buffer),
    ):
        assert not eager.unattended((plain, other))


def test_a_graph_on_a_gpu_passes_the_dispatcher_by(
    on_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def instead(operator: Any) -> Any:
        def run(*arguments: Any) -> Any:
            seen.append(operator.name())
            assert not any(x.grad_fn for x in operator(*arguments))
            return operator(*arguments)

        return run

    for operator in tuple(autograd._ON_GPU):
        monkeypatch.setitem(autograd._ON_GPU, operator, instead(operator))
    attn = patterncc.compile(STREAMING)
    inputs = [tensor.requires_grad_() for tensor in tensors()]
    found = torch.autograd.grad(attn(*inputs).sin().sum(), inputs)
    assert seen == ["patterncc::attn_fwd", "patterncc::attn_bwd"]
    with Mode():  # type: ignore[no-untyped-call]
        wanted = torch.autograd.grad(attn(*inputs).sin().sum(), inputs)
    assert len(seen) == 2
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


# --------------------------------------------------------------------------------------- signatures


def signature(attn: patterncc.Attention, numbers: tuple[Any, ...], **values: Any) -> Any:
    return eager.call_signature(attn._signature, attn._score, *tensors(), numbers, values)


def test_equal_numbers_of_other_types_are_other_calls() -> None:
    attn = patterncc.compile(STREAMING)
    given = (None, None, 0, None)
    assert signature(attn, given) == signature(attn, given) is not None
    assert signature(attn, given, window=1) == signature(attn, given, window=1)
    kinds = [signature(attn, given, window=number) for number in (1, 1.0, 2)]
    kinds += [signature(attn, (None, None, layer, None)) for layer in (0, 0.0, 1)]
    kinds += [signature(attn, (scale, None, 0, None)) for scale in (1, 1.0)]
    kinds += [signature(attn, (None, offset, 0, None)) for offset in (1, 1.0)]
    assert len({*kinds}) == len(kinds)


@pytest.mark.parametrize("number", [True, None, [1], "1", 1j])
def test_other_types_are_looked_at_each_time(number: Any) -> None:
    attn = patterncc.compile(STREAMING)
    assert signature(attn, (None, None, 0, None), window=number) is None
    assert number is None or signature(attn, (None, None, number, None)) is None


def test_defaults_tables_and_scores_are_part_of_a_call() -> None:
    given = (None, None, 0, None)
    others = [
        signature(patterncc.compile(STREAMING), given),
        signature(patterncc.compile(STREAMING.replace("24", "25")), given),
        signature(patterncc.compile("causal"), given),
        signature(patterncc.compile("causal", score="score + 1"), given),
        signature(patterncc.compile("causal", score="score + 2"), given),
    ]
    attn = patterncc.compile(BY_HEAD)
    tables = [
        torch.ones(4).int(),
        torch.ones(4).long(),
        torch.ones(3).int(),
        torch.ones(8).int()[::2],
    ]
    others += [signature(attn, given, w=table) for table in tables]
    assert None not in others and len({*others}) == len(others)


def test_tables_that_autograd_follows_are_not_plain() -> None:
    attn = patterncc.compile("causal", score="score + slopes[head]")
    given = (None, None, 0, None)
    slopes = torch.nn.Parameter(torch.ones(4))
    assert signature(attn, given, slopes=slopes) is None
    with torch.no_grad():
        assert signature(attn, given, slopes=slopes) is not None


# ------------------------------------------------------------------------------- in the interpreter


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with interpreter() as worker:
        yield worker


def work(text: str, values: dict[str, Any], options: dict[str, Any]) -> None:
    """The short way, twice, beside the oracle; then arguments that are wrong, after right ones."""
    torch.Tensor.is_cuda = True
    attn = patterncc.compile(text, **options)
    query, key, value = tensors(50, batch=1, heads=2, kv_heads=1)
    before = len(eager.calls)
    # By no plan, by a signature, and by what the call before it left.
    for numbers in ({}, {}, {}, {"scale": -0.3}, {"q_offset": 3}):
        with torch.no_grad():
            results = attn(query, key, value, return_lse=True, **numbers, **values)
        if not options:
            want = expected(attn, query, key, value, **numbers, **values)
            assert_right(results, want, query)
        structure = attn.pattern.structure
        tables = [values[table.name] for table in attn.pattern.tables]
        score: tuple[Any, ...] = ()
        if attn._score is not None:
            tables += [values[name] for name in attn._score.tables]
            score = (attn._score.text, [values[name] for name in attn._score.numbers])
        given = [values.get(n.name, n.value) for n in attn.pattern.numbers]
        offset, scale = numbers.get("q_offset"), numbers.get("scale")
        rest = (structure, tables, given, scale, offset, 0, None, *score)
        for one, other in zip(results, gpu_calls.attn_fwd(query, key, value, *rest), strict=True):
            assert torch.equal(one, other)
    assert len(eager.calls) == before + 3
    wrong: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((query, key, value), {"layer": True}, "`layer` is bool True; it must be an integer"),
        ((query, key, value), {"layer": 0.0}, "`layer` is float 0.0; it must be an integer"),
        ((query, key, value), {"q_offset": 3.0}, "`q_offset` is float 3.0"),
        ((query, key, value), {"scale": True}, "`scale` is bool True; it must be a number"),
        ((query, key, value), {"scale": float("nan")}, "`scale` is nan; it must be finite"),
        ((query, key[:, :, :9], value), {}, "`value` has length 50 but `key` has 9"),
        ((query, key.half(), value), {}, "`key` is float16 but `query` is float32"),
        ((query, key, value), {"other": 3}, "`other` is not a parameter of the pattern"),
        ((query, key, [value]), {}, "`value` is list; it must be a tensor"),
    ]
    for inputs, change, message in wrong:
        for _ in range(2):
            with torch.no_grad(), pytest.raises(patterncc.ArgumentError, match=message):
                attn(*inputs, **{**values, **change})
    for name, given_value in values.items():
        bad = {"bool": True} if isinstance(given_value, int) else {"list": [1, 2]}
        for changed in bad.values():
            with torch.no_grad(), pytest.raises(patterncc.ArgumentError, match=f"`{name}` is"):
                attn(query, key, value, **{**values, name: changed})
    assert len(eager.calls) == before + 3


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "run-time numbers": (STREAMING, {"window": 9}, {}),
    "a table": (BY_HEAD, {"w": torch.tensor([3, 30])}, {}),
    "documents": (
        "pattern p(doc: segments): causal and doc[q] == doc[k]",
        {"doc": torch.tensor([0, 17, 17, 50], dtype=torch.int32)},
        {},
    ),
    "score terms": (
        "causal",
        {"cap": 2.0, "slopes": torch.tensor([0.1, -0.2])},
        {"score": "softcap(score, cap) + slopes[head]"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_short_way(case: str, pool: ProcessPoolExecutor) -> None:
    pool.submit(work, *CASES[case]).result()


def documents_of_other_numbers() -> None:
    """Calls with a number of documents that no call had before."""
    torch.Tensor.is_cuda = True
    attn = patterncc.compile("pattern p(doc: segments): causal and doc[q] == doc[k]")
    query, key, value = tensors(50, batch=1, heads=2, kv_heads=1)
    for bounds in ([0, 50], [0, 17, 50], [0, 1, 2, 30, 50], [0, 25, 25, 25, 25, 50]):
        doc = torch.tensor(bounds, dtype=torch.int32)
        with torch.no_grad():
            results = attn(query, key, value, return_lse=True, doc=doc)
        assert_right(results, expected(attn, query, key, value, doc=doc), query)
        leaf = query.clone().requires_grad_()
        grads = gradient(attn, leaf, key, value, doc)
        torch.testing.assert_close(grads, reference(attn, query, key, value, doc))


def gradient(attn: Any, leaf: Tensor, key: Tensor, value: Tensor, doc: Tensor) -> Tensor:
    rest: tuple[Any, ...] = (attn.pattern.structure, [doc], [])
    with torch.no_grad():
        out, lse = gpu_calls.attn_fwd(leaf, key, value, *rest)
        needs = [True, False, False, False]
        options: tuple[Any, ...] = (None, None, 0, None, None, [], True, False, needs)
        grads = gpu_calls.attn_bwd(
            torch.ones_like(out), None, leaf, key, value, out, lse, *rest, *options
        )
    (grad,) = grads
    return grad


def reference(attn: Any, query: Tensor, key: Tensor, value: Tensor, doc: Tensor) -> Tensor:
    leaf = query.clone().requires_grad_()
    mask = attn.mask(50, doc=doc)
    scores = (leaf @ key.mT) * leaf.shape[-1] ** -0.5
    out = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    return grad


def test_documents_of_other_numbers(pool: ProcessPoolExecutor) -> None:
    pool.submit(documents_of_other_numbers).result()


def tensors_are_let_go() -> None:
    """Calls forward and backward with all kinds of tables, of which nothing is left but plans."""
    text = "pattern p(w: int[head]): 0 <= q - k < w[head]"
    attn = patterncc.compile(text, score="score + slopes[head]", sink="sinks[head]")
    query, key, value = tensors(20, batch=1, heads=2, kv_heads=1)
    tables = [torch.tensor([3, 9]), torch.zeros(2), torch.zeros(2)]
    assert attn._score is not None
    options: tuple[Any, ...] = ([], None, None, 0, None, attn._score.text, [])
    rest: tuple[Any, ...] = (attn.pattern.structure, tables, *options)
    out, lse = gpu_calls.attn_fwd(query, key, value, *rest)
    grads = gpu_calls.attn_bwd(torch.ones_like(out), None, query, key, value, out, lse, *rest)
    assert len(grads) == 5
    known = [weakref.ref(each) for each in (query, key, value, *tables, out, lse, *grads)]
    del query, key, value, tables, rest, out, lse, grads
    gc.collect()
    assert [reference() for reference in known] == [None] * len(known)


def test_no_tensor_outlives_its_call(pool: ProcessPoolExecutor) -> None:
    pool.submit(tensors_are_let_go).result()


def test_attend_is_still_traced() -> None:
    # What torch.compile sees has no short way.
    attn = patterncc.compile(STREAMING)
    function = torch.compile(lambda *inputs: attn(*inputs), fullgraph=True, backend="eager")
    inputs = tensors()
    assert torch.equal(function(*inputs), attn(*inputs))
