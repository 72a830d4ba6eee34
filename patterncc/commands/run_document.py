"""What `patterncc run --json` prints."""

from typing import TYPE_CHECKING, Any

from patterncc.score_text import terms_as_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterncc.backward_trial import BackwardTrial
    from patterncc.rivals import Dense
    from patterncc.score_example import Scores
    from patterncc.timing import Timing
    from patterncc.trial import Trial


def document(found: "Trial") -> dict[str, Any]:
    """All that was found."""
    call, problem, tiles, verdict = found.call, found.problem, found.tiles, found.verdict
    scores = found.scores
    return {
        "pattern": {"name": call.pattern.name, "text": call.pattern.text},
        "call": {
            "batch": found.batch,
            "q_len": call.q_len,
            "kv_len": call.kv_len,
            "q_offset": call.q_offset,
            "layer": found.layer,
            **call.sizes,
            "head_dim": problem.head_dim,
            "value_head_dim": problem.value_head_dim,
            "dtype": problem.dtype,
        },
        "score_terms": None if scores.terms.plain else _scores_document(scores),
        "device": found.device,
        "machine": found.machine,
        "density": found.density,
        "pairs": tiles.pairs,
        "block_q": tiles.block_q,
        "block_k": tiles.block_k,
        "tiles": tiles.all,
        "visited": tiles.visited,
        "full": tiles.full,
        "useful_flops": found.useful_flops,
        "first_seconds": found.first,
        "seconds": _times(found.timing),
        "dense": _dense_document(found.dense),
        "check": {
            "right": verdict.right,
            "rows": verdict.rows,
            "checked": verdict.checked,
            "error": _finite(verdict.error),
            "tolerance": verdict.tolerance,
            "lse_error": _finite(verdict.lse_error),
            "lse_tolerance": verdict.lse_tolerance,
        },
        "backward": None if found.backward is None else _backward_document(found, found.backward),
    }


def _scores_document(scores: "Scores") -> dict[str, Any]:
    return {
        **terms_as_json(scores.terms),
        "numbers": dict(scores.numbers),
        "tables": {
            name: {"shape": list(table.shape), "drawn": name in scores.drawn}
            for name, table in scores.tables.items()
        },
    }


def _backward_document(found: "Trial", backward: "BackwardTrial") -> dict[str, Any]:
    verdict = backward.verdict
    return {
        "useful_flops": found.useful_backward_flops,
        "first_seconds": backward.first,
        "seconds": _times(backward.timing),
        "dense": _dense_document(backward.dense),
        "check": {
            "right": verdict.right,
            "rows": verdict.rows,
            "checked": verdict.checked,
            "errors": {name: _finite(error) for name, error in verdict.errors.items()},
            "tolerance": verdict.tolerance,
            "allowed": {name: verdict.allowed(name) for name in verdict.errors},
        },
    }


def _dense_document(dense: "Sequence[Dense]") -> list[dict[str, Any]]:
    return [
        {
            "name": rival.name,
            "skipped": rival.skipped or None,
            "seconds": None if rival.timing is None else _times(rival.timing),
        }
        for rival in dense
    ]


def _times(timing: "Timing") -> dict[str, Any]:
    return {
        "median": timing.median,
        "least": timing.least,
        "count": len(timing.seconds),
    }


def _finite(number: float) -> float | str:
    """JSON has no infinity."""
    return number if number < float("inf") else "infinite"
