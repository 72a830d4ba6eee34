"""What the operators run on GPUs, in Triton's interpreter: from their arguments to kernels."""

from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch

import patterncc
from patterncc import gpu_calls
from tests.front.inputs import assert_right, assert_right_gradients, expected, expected_gradients
from tests.front.inputs import tensors as draw

STREAMING = "pattern streaming(sinks = 4, window = 24): causal and (k < sinks or q - k < window)"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "run-time numbers": (STREAMING, {}),
    "two passes": ("window(9) or dilated(4, 3)", {}),
    "documents": (
        "pattern p(doc: segments): causal and doc[q] == doc[k]",
        {"doc": torch.tensor([0, 17, 17, 50])},  # int64: kernels read int32
    ),
    "patches": (
        "q // 50 == k // 50 and q // 5 % 10 // 3 == k // 5 % 10 // 3 and q % 5 <= k % 5",
        {},
    ),
    "patches by a number": ("neighborhood(5, 10, 3)", {}),
    "sizes it divides by": ("causal and (k // 8 + layer) % layers == 0", {}),
}


def work(text: str, tables: dict[str, Any], with_lse: bool) -> None:
    """A forward and a backward by the kernels of GPUs, compared with the oracle."""
    attn = patterncc.compile(text)
    query, key, value = draw(50, batch=1, heads=2, kv_heads=1)
    structure = attn.pattern.structure
    numbers = [number.value for number in attn.pattern.numbers]
    rest: tuple[Any, ...] = (
        structure,
        [tables[t.name] for t in attn.pattern.tables],
        numbers,
        None,
        None,
        1,
        3,
    )
    out, lse = gpu_calls.attn_fwd(query, key, value, *rest)
    options: dict[str, Any] = {"layer": 1, "layers": 3, **tables}
    assert_right((out, lse), expected(attn, query, key, value, **options), query)
    grad_out = torch.randn_like(out)
    grad_lse = torch.randn_like(lse) if with_lse else None
    arguments = (query, key, value)
    grads = gpu_calls.attn_bwd(grad_out, grad_lse, *arguments, out, lse, *rest)
    answers = expected_gradients(attn, arguments, grad_out, grad_lse, **options)
    assert_right_gradients(grads, answers, arguments)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_lse", [True, False])
def test_gradients(case: str, with_lse: bool, worker: ProcessPoolExecutor) -> None:
    worker.submit(work, *CASES[case], with_lse).result()


def other_shapes(text: str, tables: list[dict[str, Any]]) -> None:
    for given in tables:
        work(text, given, False)


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        (
            "pattern p(doc: segments): causal and doc[q] == doc[k]",
            [
                {"doc": torch.tensor(bounds, dtype=dtype)}
                for dtype in (torch.int32, torch.int64)
                for bounds in ([0, 17, 50], [0, 3, 5, 31, 50], [0], [0, 20, 20, 49], [0, 33, 50])
            ],
        ),
        # What a launch counts of a table has the table's shape.
        (
            "pattern p(slashes: bool[head, *]): causal and slashes[head, q - k]",
            [
                {"slashes": torch.arange(2 * length).view(2, length) % 7 < 2}
                for length in (20, 50, 9, 45)
            ],
        ),
    ],
)
def test_tables_of_other_shapes_at_calls_that_are_else_alike(
    text: str, tables: list[dict[str, Any]], worker: ProcessPoolExecutor
) -> None:
    worker.submit(other_shapes, text, tables).result()


def test_nothing_to_do_needs_no_kernel() -> None:
    structure = patterncc.compile("causal").pattern.structure
    for q_len, kv_len in ((0, 5), (5, 0)):
        inputs = draw(q_len, kv_len)
        rest: tuple[Any, ...] = (structure, [], [], None, None, 0, None)
        out, lse = gpu_calls.attn_fwd(*inputs, *rest)
        assert bool((out == 0).all()) and bool((lse == -torch.inf).all())
        for grad in gpu_calls.attn_bwd(out, None, *inputs, out, lse, *rest):
            assert bool((grad == 0).all())
