"""What the processes of `tests.gpu.random_calls` say, summed up."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, Literal

from tests.gpu.checked_call import Outcome

Kind = Literal["begun", "called", "refused", "failed", "ended"]


@dataclass(frozen=True)
class Message:
    """What a process has to say.

    Attributes:
        kind: Of what happened.
        pattern: The seed of the pattern.
        content: Of `called` the call's outcome; otherwise words.
        call: The call as a dictionary, where there is one.
    """

    kind: Kind
    pattern: int
    content: Any = None
    call: dict[str, Any] | None = None


class Summary:
    """What all calls showed."""

    def __init__(self) -> None:
        self.calls = 0
        self.deterministic = 0
        self.running: set[int] = set()
        self.patterns: set[int] = set()
        self.refused: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.groups: dict[tuple[str, str], dict[str, Any]] = defaultdict(
            lambda: {"calls": 0, "patterns": set(), "worst": {}}
        )

    def take(self, message: Message) -> None:
        """Adds what a process says."""
        number = message.pattern
        match message.kind:
            case "begun":
                self.running.add(number)
            case "ended":
                self.running.discard(number)
            case "refused":
                self.refused[message.content] += 1
            case "failed":
                self._fail(message, [message.content])
            case "called":
                outcome: Outcome = message.content
                self.calls += 1
                self.patterns.add(number)
                assert message.call is not None
                dtype = message.call["dtype"].removeprefix("torch.")
                for side, name in (("forward", outcome.forward), ("backward", outcome.backward)):
                    group = self.groups[side, name]
                    group["calls"] += 1
                    group["patterns"].add(number)
                    wanted = (lambda n: n.startswith("grad_")) if side == "backward" else None
                    for result, error in outcome.errors.items():
                        if (wanted is not None) == result.startswith("grad_") and result != "lse":
                            worst = group["worst"]
                            worst[dtype] = max(worst.get(dtype, 0.0), error)
                if outcome.differences:
                    self._fail(message, list(outcome.differences))

    def _fail(self, message: Message, words: list[str]) -> None:
        call = message.call
        self.failures.append({"seed": message.pattern, "differences": words, "call": call})
        text = "" if call is None else call["text"]
        print(
            f"seed {message.pattern}: {'; '.join(words)[:400]}\n    {text[:200]} {call}", flush=True
        )

    def document(self) -> dict[str, Any]:
        """As JSON."""
        groups = [
            {
                "side": side,
                "kernels": name,
                "patterns": len(group["patterns"]),
                "calls": group["calls"],
                "worst": {dtype: float(f"{e:.3g}") for dtype, e in sorted(group["worst"].items())},
            }
            for (side, name), group in sorted(
                self.groups.items(), key=lambda g: (g[0][0], -g[1]["calls"])
            )
        ]
        return {
            "calls": self.calls,
            "patterns": len(self.patterns),
            "refused": dict(self.refused),
            "not_ended": sorted(self.running),
            "failures": self.failures,
            "groups": groups,
        }


def table(document: dict[str, Any]) -> str:
    """The summary for people."""
    rows = [("", "kernels", "patterns", "calls", "worst error, as a share of the largest entry")]
    for group in document["groups"]:
        worst = ", ".join(f"{dtype} {error:.2g}" for dtype, error in group["worst"].items())
        rows.append((group["side"], group["kernels"], group["patterns"], group["calls"], worst))
    widths = [max(len(str(row[place])) for row in rows) for place in range(4)]
    lines = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, [*widths, 0], strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
