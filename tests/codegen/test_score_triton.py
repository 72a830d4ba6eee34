"""Score terms in generated kernels, in Triton's interpreter, against the dense oracle."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import pytest

from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.ir import DENSE
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl.errors import UnsupportedError
from tests.codegen.interpreter import Call
from tests.codegen.score_calls import ScoreCall, attend_with_terms, differentiate_terms

BY_DESCRIPTOR = KernelConfig(32, 32, 4, 1, "descriptor")
DILATED = "0 <= q - k < 40 and (q - k) % 4 == 0"
BLOCKS = "pattern kept(keep: bool[head, *, *]): blocks(16, keep)"
SPLIT = (("causal and k < 20", DENSE), ("causal and k >= 20", DENSE))
RESIDUES = ((DILATED, residue_tiling(4)),)

CASES = (
    ScoreCall(Call("causal", 70, 70), "softcap(score, 2)"),
    ScoreCall(
        Call("window(40)", 70, 100, dtype="float16"), "softcap(score, cap)", None, {"cap": 1.5}
    ),
    ScoreCall(
        Call("causal", 70, 90, heads=(4, 2), batch=2),
        "score + alibi(slopes)",
        shapes={"slopes": (4,)},
    ),
    ScoreCall(
        Call("around(20)", 60, 110, offset=10, config=BY_DESCRIPTOR),
        "softcap(score, 3) + relative_bias(bias, 7)",
        "sinks[head]",
        shapes={"bias": (2, 15), "sinks": (2,)},
    ),
    ScoreCall(Call("k > q", 90, 70), sink="sinks[head]", shapes={"sinks": (2,)}),
    ScoreCall(Call("window", 50, 60, {"n": 0}), sink="0.5"),
    ScoreCall(Call("causal", 40, 0), sink="sinks[layer, head]", shapes={"sinks": (1, 2)}),
    ScoreCall(Call("window(30)", 60, 60), "score", "100 * tanh(0.1 * q) - 40"),
    ScoreCall(
        Call("causal", 64, 80, {"layer": 2}, scale=-0.7),
        "if layer % 2 == 0 then max(score, -abs(0.1 * k)) else score",
    ),
    ScoreCall(
        Call("causal", 50, 70, scale=0.0), "score * sqrt(log(2.0 + q)) + sigmoid(score) - exp(-k)"
    ),
    ScoreCall(
        Call("causal", 50, 70),
        "score + bias[head, q, k - 3] / (1 + abs(score)) + places[-k]",
        shapes={"bias": (2, 60, 70), "places": (40,)},
    ),
    ScoreCall(
        Call(DILATED, 90, 100, passes=RESIDUES, heads=(1, 1)),
        "score - slopes[head] * (q - k) + min(0.01 * q_len, 3) * bias[q] + bias[k]",
        "0.01 * q + sinks[head]",
        shapes={"slopes": (1,), "bias": (100,), "sinks": (1,)},
    ),
    ScoreCall(
        Call(
            "causal",
            80,
            80,
            passes=(
                ("causal and k < 20", DENSE),
                ("causal and k >= 20", DENSE),
            ),
        ),
        "softcap(score, 2) - 0.1 * (q - k)",
        "sinks[head]",
        shapes={"sinks": (2,)},
    ),
    ScoreCall(
        Call(BLOCKS, 60, 64, tables={"keep": [[[True, False, True, False]] * 4] * 2}),
        "softcap(score, 2) - 0.1 * (q - k)",
        "sinks[head]",
        shapes={"sinks": (2,)},
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.call.text} {case.score}")
def test_attention(worker: ProcessPoolExecutor, case: ScoreCall) -> None:
    found = worker.submit(attend_with_terms, case).result()
    # Logits are of the order of 100, and float32 has 24 bits of each.
    bound = 2e-3 if case.call.dtype == "float16" else 2e-5
    assert found.out < bound and found.lse < bound and found.empty, found


BACKWARD = (
    (ScoreCall(Call("causal", 70, 70), "softcap(score, 2)"), None),
    (
        ScoreCall(
            Call("causal", 70, 90, heads=(4, 2), batch=2, dtype="float16"),
            "score - slopes[head] * (0.1 * (q - k))",
            shapes={"slopes": (4,)},
        ),
        None,
    ),
    (
        ScoreCall(
            Call("around(20)", 60, 110, offset=10, heads=(4, 2)),
            "softcap(score, 3) + relative_bias(bias, 7)",
            "sinks[head]",
            shapes={"bias": (4, 15), "sinks": (4,)},
        ),
        None,
    ),
    (
        ScoreCall(
            Call("causal", 70, 100, heads=(4, 2), batch=2, config=None),
            "score + places[k] * score + 0.5 * bias[head, q - k] + slopes[head]",
            shapes={"places": (90,), "bias": (4, 50), "slopes": (4,)},
        ),
        None,
    ),
    (
        ScoreCall(
            Call("causal", 80, 80, passes=SPLIT, heads=(2, 1), dtype="float16"),
            "softcap(score, 2) + relative_bias(bias, 5) + places[k]",
            shapes={"bias": (2, 11), "places": (80,)},
        ),
        None,
    ),
    (
        ScoreCall(
            Call(BLOCKS, 60, 64, tables={"keep": [[[True, False, True, False]] * 4] * 2}),
            "score + bias[head, min(abs(q - k) // 3, 9)]",
            shapes={"bias": (2, 10)},
        ),
        None,
    ),
    (
        # Tiles far from the diagonal choose one entry each, corners tell.
        ScoreCall(
            Call("full", 150, 130, offset=-40),
            "score + relative_bias(bias, 7) + steps[-(max(q - k, -50) // 40) + 2]",
            shapes={"bias": (2, 15), "steps": (9,)},
        ),
        None,
    ),
    (ScoreCall(Call("k > q", 90, 70), sink="sinks[head]", shapes={"sinks": (2,)}), None),
    (ScoreCall(Call("causal", 40, 0), sink="sinks[head]", shapes={"sinks": (2,)}), None),
    (
        # What the rows past the last one have is NaN.
        ScoreCall(
            Call("full", 50, 70, heads=(2, 2)),
            "score * sqrt(70 - q) + gains[head] * sigmoid(score) + 0.5 * bias[head, q]",
            shapes={"gains": (2,), "bias": (2, 60)},
        ),
        None,
    ),
    (
        ScoreCall(
            Call(DILATED, 90, 100, passes=RESIDUES, heads=(2, 1)),
            "softcap(score, 2) * gains[head] - 0.05 * abs(q - k)",
            "0.01 * q + sinks[head]",
            shapes={"gains": (2,), "sinks": (2,)},
        ),
        None,
    ),
    (
        ScoreCall(
            Call("causal", 80, 80, passes=SPLIT, heads=(2, 1), dtype="float16"),
            "gains[head] * softcap(score, 2) - 0.05 * abs(q - k)",
            "sinks[head]",
            shapes={"gains": (2,), "sinks": (2,)},
        ),
        None,
    ),
    (
        ScoreCall(
            Call(BLOCKS, 60, 64, tables={"keep": [[[True, False, True, False]] * 4] * 2}),
            "softcap(score, 2) + 0.1 * gains[head] * (q - k)",
            "sinks[head]",
            shapes={"gains": (2,), "sinks": (2,)},
        ),
        None,
    ),
)


@pytest.mark.parametrize(
    ("case", "wanted"), BACKWARD, ids=[f"{case.call.text} {case.score}" for case, _ in BACKWARD]
)
def test_gradients(
    worker: ProcessPoolExecutor, case: ScoreCall, wanted: tuple[str, ...] | None
) -> None:
    found = worker.submit(differentiate_terms, case, wanted).result()
    bound = 3e-3 if case.call.dtype == "float16" else 1e-5
    assert max(found.query, found.key, found.value) < bound, found
    assert max(found.tables.values(), default=0.0) < bound, found
    assert found.again


@pytest.mark.parametrize(
    ("call", "score", "message"),
    [
        (Call("causal", 40, 40), "score + bias[q // 3, k]", "gradient of `bias.*more of the posit"),
        (Call("causal", 40, 40), "score + bias[head, q - 2 * k]", "more of the positions"),
        (
            Call(DILATED, 90, 100, passes=RESIDUES, heads=(1, 1)),
            "score + relative_bias(bias, 7)",
            "classes of rows or keys",
        ),
    ],
)
def test_gradients_without_a_kernel_are_refused(
    worker: ProcessPoolExecutor, call: Call, score: str, message: str
) -> None:
    case = ScoreCall(call, score, shapes={"bias": (2, 15)})
    with pytest.raises(UnsupportedError, match=message):
        worker.submit(differentiate_terms, case).result()
