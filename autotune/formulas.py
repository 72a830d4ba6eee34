"""The cost model written out: a formula for each part of a prediction, with its numbers.

What `explain --cost` prints. `cost` computes the same with floats; tests compare the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from patterncc.autotune.cost import (
    WIDE_ROWS,
    CpuConstants,
    GpuConstants,
    hidden_share,
    predict_cpu,
    predict_gpu,
    tile_work,
)
from patterncc.autotune.space import Phase
from patterncc.autotune.tile_facts import PassFacts
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem


@dataclass(frozen=True, slots=True)
class Formula:
    """One part of a prediction.

    Attributes:
        part: As in `cost.Prediction.parts`.
        expression: In the symbols of `values`; None where it is no closed formula.
        values: Numbers by symbol.
        seconds: What it comes to.
        words: What it is.
    """

    part: str
    expression: sympy.Expr | None
    values: Mapping[str, float]
    seconds: float
    words: str


# Counts and sizes; the other symbols are the constants' names.
MEANINGS: Mapping[str, str] = {
    "V": "tiles that are visited, of all heads",
    "P": "partial ones among them",
    "N": "programs",
    "M": "multiprocessors",
    "R": "programs that reside on one",
    "F": "operations of a tile's products",
    "A": "scores of a tile",
    "H": "rows or keys that a program holds",
    "B": "bytes of what passes by, of a tile",
    "G": "bytes of the rows that a program reads first and writes last",
    "L": "loops of a program",
    "E": "launches",
}


def gpu_formulas(
    one: PassFacts,
    config: KernelConfig,
    phase: Phase,
    problem: Problem,
    resident: int,
    constants: GpuConstants,
) -> tuple[Formula, ...]:
    """The parts of one pass on a GPU; arguments as of `cost.predict_gpu`."""
    work = tile_work(config, phase, problem)
    v, p, n, m, r, f, a, h, b, loops, launches = sympy.symbols("V P N M R F A H B L E")
    rate, g = sympy.Symbol("products"), sympy.Symbol("G")
    if work.held < WIDE_ROWS * max(1, config.num_warps // 4):
        rate = rate * sympy.Symbol("small")
    products = f / rate
    hidden, share = hidden_share(resident, config.num_warps // 4, constants)
    visible = (1 - sympy.Symbol(hidden)) * (a / sympy.Symbol("softmax") + h / sympy.Symbol("rows"))
    if config.load == "pointer":
        visible += b * sympy.Symbol("pointer")
    waits = {1: "exposed_one", 2: "exposed_two"}.get(config.num_stages)
    waiting = sympy.Symbol(waits) / r if waits else sympy.Integer(0)
    loads = sympy.Max(waiting, b / sympy.Symbol("load") - products - visible)
    mask, start, drain = a / sympy.Symbol("mask"), sympy.Symbol("start"), sympy.Symbol("drain")
    if config.emitter == "gluon":
        products *= sympy.Symbol("gluon_products")
        alone = visible if resident * (config.num_warps // 4) <= 1 else 0
        own = a / sympy.Symbol("gluon_softmax") + h / sympy.Symbol("gluon_rows")
        if config.peaks == "kept" and one.keeps_peak:
            own *= sympy.Symbol("gluon_kept")
        visible = alone + own
        loads, mask = sympy.Integer(0), a / sympy.Symbol("gluon_mask")
        start, drain = g / sympy.Symbol("gluon_ends"), sympy.Symbol("gluon_drain")
    mask += a / sympy.Symbol("lookup") if one.looked_up else 0
    once = (start + loops * drain) / r
    expressions = {
        "products": (v / m * products, "products on the matrix units"),
        "softmax": (v / m * visible, "what of the softmax hides under no products"),
        "loads": (v / m * loads, "waiting for loads"),
        "mask": (p / m * mask, "masks of partial tiles"),
        "programs": (n / m * once, "starting programs, filling their pipelines"),
        "tail": (None, "half of what the last programs take, while others are done"),
        "launch": (launches * sympy.Symbol("launch"), "launching"),
    }
    known = {
        "V": one.visited * one.heads,
        "P": one.visited_partial * one.heads,
        "N": len(one.full) * one.heads,
        "M": constants.multiprocessors,
        "R": float(resident),
        "F": work.operations,
        "A": float(config.block_q * config.block_k),
        "H": float(work.held),
        "B": work.loaded,
        "G": work.ends,
        "L": float(one.loops),
        "E": 2.0 if one.listed else 1.0,
        hidden: share,
    }
    found = predict_gpu((one,), config, phase, problem, resident, constants)
    return _formulas(expressions, known, constants, found.parts)


def cpu_formulas(
    one: PassFacts, config: KernelConfig, problem: Problem, constants: CpuConstants
) -> tuple[Formula, ...]:
    """The parts of one pass on a CPU."""
    v, p, f, a, h, launches = sympy.symbols("V P F A H E")
    symbol = sympy.Symbol
    expressions = {
        "products": (v * f / symbol("products"), "products"),
        "rows": (v * h * symbol("row"), "maxima and sums of rows"),
        "mask": (p * a * symbol("mask"), "masks of partial tiles"),
        "tiles": (v * symbol("tile"), "visiting tiles"),
        "launch": (launches * symbol("launch"), "the call itself"),
    }
    pairs = float(config.block_q * config.block_k)
    known = {
        "V": one.visited * one.heads,
        "P": one.visited_partial * one.heads,
        "F": 2 * pairs * (problem.head_dim + problem.value_head_dim),
        "A": pairs,
        "H": float(config.block_q),
        "E": 1.0,
    }
    found = predict_cpu((one,), config, problem, constants)
    return _formulas(expressions, known, constants, found.parts)


def _formulas(
    expressions: Mapping[str, tuple[sympy.Expr | None, str]],
    known: Mapping[str, float],
    constants: GpuConstants | CpuConstants,
    parts: Mapping[str, float],
) -> tuple[Formula, ...]:
    found = []
    for part, (expression, words) in expressions.items():
        names = sorted(map(str, expression.free_symbols)) if expression is not None else []
        values = {
            name: known[name] if name in known else float(getattr(constants, name))
            for name in names
        }
        found.append(Formula(part, expression, values, parts[part], words))
    return tuple(found)
