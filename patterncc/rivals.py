"""Dense attention beside which a pattern is timed: under the same mask, and causal where that is
what the pattern restricts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from patterncc.call import Call
from patterncc.explain import is_causal
from patterncc.timing import Timing, race
from patterncc.verdict import mask_rows

MOST_MASK = {"cpu": 1 << 27, "cuda": 1 << 31}  # bytes of a dense mask that is worth a comparison


@dataclass(frozen=True, slots=True)
class Dense:
    """A dense attention beside which the pattern is timed.

    Attributes:
        name: What it is.
        timing: `None` where it was not run.
        skipped: Why it was not.
    """

    name: str
    timing: Timing | None
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class Rival:
    """A dense attention: what it makes of query, key and value, or why it is not run."""

    name: str
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None
    skipped: str = ""


def rivals_of(call: Call, device: torch.device, layer: int, *, plain: bool = True) -> list[Rival]:
    """The dense attentions that are worth a comparison with a call; they know no score terms, and
    are named so where the call has some."""
    found = [_masked(call, device, layer)]
    if is_causal(call):
        found.append(_causal(call))
    return found if plain else [replace(rival, name=f"{rival.name}, no terms") for rival in found]


def _masked(call: Call, device: torch.device, layer: int) -> Rival:
    """PyTorch's attention under the same mask, as a boolean tensor."""
    name = "dense, same mask"
    heads = call.heads if call.differs_by_head else 1
    size = heads * call.q_len * call.kv_len
    most = MOST_MASK[device.type]
    if size > most:
        return Rival(name, None, f"its mask takes {size / 2**30:.3g} GiB, over {most / 2**30:.3g}")
    rows = torch.arange(call.q_len, device=device)
    masks = [mask_rows(call, call.env(head, layer), rows) for head in range(heads)]
    mask = torch.stack(masks)[None]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped = call.heads != call.kv_heads
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)

    return Rival(name, attend)


def _causal(call: Call) -> Rival:
    """PyTorch's causal attention, which computes more than the pattern asks for."""
    name = "dense, causal"
    if call.q_len != call.kv_len or call.q_offset:
        return Rival(name, None, "the rows are not all positions from 0")

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped = call.heads != call.kv_heads
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)

    return Rival(name, attend)


def race_against(
    own: Callable[[], object],
    rivals: Sequence[Rival],
    work: Callable[[Callable[[Tensor, Tensor, Tensor], Tensor]], Callable[[], object]],
    device: torch.device,
    repeats: int | None,
) -> tuple[Timing, tuple[Dense, ...]]:
    """Times the pattern and its rivals in turn; a rival that runs out of memory drops out.

    Args:
        own: The work of the pattern.
        rivals: What to compare it with.
        work: The same work of a dense attention, made ready.
        device: Where they work.
        repeats: Timed calls of each, as in `race`.
    """
    runs: dict[str, Callable[[], object]] = {}
    skipped = {rival.name: rival.skipped for rival in rivals}
    for rival in rivals:
        if rival.attend is None:
            continue
        try:
            run = work(rival.attend)
            run()
        except torch.OutOfMemoryError:
            skipped[rival.name] = "it ran out of memory"
        else:
            runs[rival.name] = run
    timing, *others = race([own, *runs.values()], device, repeats)
    found = dict(zip(runs, others, strict=True))
    return timing, tuple(Dense(name, found.get(name), why) for name, why in skipped.items())
