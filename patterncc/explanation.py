"""What `patterncc explain` finds of a pattern at one call, as plain numbers and words.

`patterncc.explain` counts them, `patterncc.explain_text` makes text of them. Loads no torch.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from patterncc.call import Call
from patterncc.codegen.facts.counts import Work
from patterncc.codegen.gpu.emitter_choice import EmitterChoice
from patterncc.codegen.gpu.gluon.reasons import HOPPER
from patterncc.codegen.gpu.one_pass_choice import OnePassChoice
from patterncc.codegen.problem import Problem
from patterncc.live import LiveReport
from patterncc.live_text import live_text
from patterncc.loops import Loop

_UNSHOWN = ("terms",)  # of the problem: it changes no count


@dataclass(frozen=True, slots=True)
class ParameterNote:
    """A parameter, whether it is fixed when the pattern is compiled, and why."""

    name: str
    kind: Literal["fixed", "run-time", "table", "segments"]
    value: int | None
    why: str
    given: bool = True


@dataclass(frozen=True, slots=True)
class PassLoops:
    """One pass over some of the pairs.

    Attributes:
        tiling: Its variables, in a few words.
        q_step, k_step: How far apart its rows and keys are; loops count within the first class.
        run: Keys of the runs that its key tiles are gathered from, which loops count then; 0 for
            key tiles of consecutive keys.
        visited, full: Tiles, of all classes.
        listed: What tables say of which tiles are visited, of those that the loops have; "" where
            they say nothing.
        ignored: Terms of the mask that decide only inside of the tiles.
        forward: Loops of a query tile.
        transposed: Loops of a key tile.
    """

    tiling: str
    q_step: int
    k_step: int
    run: int
    visited: int
    full: int
    listed: str
    ignored: tuple[str, ...]
    forward: tuple[Loop, ...]
    transposed: tuple[Loop, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Heads of layers that do exactly the same: row by row the same counts of keys and tiles.

    Attributes:
        members: Pairs of a layer and a head, both from 0.
        work: Of each of them.
        density: Visible pairs of all pairs.
        keys: The fewest, the mean and the most keys of a row.
        dead: Half-open ranges of rows that see no key; their output is 0, their lse -inf.
        passes: How the pairs are computed.
    """

    members: tuple[tuple[int, int], ...]
    work: Work
    density: float
    keys: tuple[int, float, int]
    dead: tuple[tuple[int, int], ...]
    passes: tuple[PassLoops, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to compute the pattern that was considered.

    Attributes:
        tiling: Its passes, in a few words.
        cost: Counted at the reference length, in full tiles; `None` where it is not possible.
        chosen: Whether it is the one.
        reason: Why it is not possible.
    """

    tiling: str
    cost: float | None
    chosen: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a pattern is and costs at one call.

    Attributes:
        call: The pattern and its sizes.
        problem: Types and head sizes that operations and bytes are counted for.
        block_q: Rows of a query tile.
        block_k: Keys of a key tile.
        mathematics: The mask, line by line.
        parameters: In declared order, fixed ones first.
        causal: Whether no row sees a later position, at any length; `None` where it is not known.
        ways: What the passes were chosen from.
        groups: The heads of the layers looked at; none in an outline.
        live: Which keys a cache must keep, counted at the last row of the call; or why that is not
            known.
        emitter: What writes the forward kernels of untuned calls on `HOPPER`, and why.
        gradients: How gradients are computed there, and why; None in an outline.
    """

    call: Call
    problem: Problem
    block_q: int
    block_k: int
    mathematics: tuple[str, ...]
    parameters: tuple[ParameterNote, ...]
    causal: bool | None
    ways: tuple[Way, ...]
    groups: tuple[Group, ...]
    live: LiveReport | str
    emitter: EmitterChoice | None = None
    gradients: OnePassChoice | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it as what `json.dumps` takes."""
        pattern = self.call.pattern
        return {
            "pattern": {
                "name": pattern.name,
                "text": pattern.text,
                "structure": pattern.structure,
                "mathematics": list(self.mathematics),
                "causal": self.causal,
                "parameters": [asdict(note) for note in self.parameters],
            },
            "call": {
                "q_len": self.call.q_len,
                "kv_len": self.call.kv_len,
                "q_offset": self.call.q_offset,
                **self.call.sizes,
                **{
                    name: value
                    for name, value in asdict(self.problem).items()
                    if name not in _UNSHOWN
                },
                "block_q": self.block_q,
                "block_k": self.block_k,
            },
            "emitter": None
            if self.emitter is None
            else {"target": HOPPER, "name": self.emitter.name, "reason": self.emitter.reason},
            "gradients": None
            if self.gradients is None
            else {
                "target": HOPPER,
                "one_pass": self.gradients.program is not None,
                "reason": self.gradients.reason,
            },
            "tilings": [asdict(way) for way in self.ways],
            "groups": [
                {
                    "layers": sorted({layer for layer, _ in group.members}),
                    "heads": sorted({head for _, head in group.members}),
                    "members": [list(member) for member in group.members],
                    "density": group.density,
                    "keys": dict(zip(("least", "mean", "most"), group.keys, strict=True)),
                    "dead_rows": [list(rows) for rows in group.dead],
                    **asdict(group.work),
                    "passes": [asdict(each) for each in group.passes],
                }
                for group in self.groups
            ],
            "live": {"unknown": self.live}
            if isinstance(self.live, str)
            else {"form": live_text(self.live.form), **self.live.as_json()},
        }
