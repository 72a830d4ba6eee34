"""The coordinates and sizes of one head of a call, for what looks at a pattern without tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.arguments import LIMIT, integer
from patterncc.dsl.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Set


def head_scalars(
    reads: Set[str],
    q_len: int,
    kv_len: int | None,
    q_offset: int | None,
    head: int,
    layer: int,
    heads: int | None,
    kv_heads: int | None,
    layers: int | None,
    batch: int,
) -> dict[str, int]:
    """The scalars of one head by name, checked, with what was left open filled in.

    Args:
        reads: Names of the coordinates and sizes that the pattern reads: of `heads`, `kv_heads` and
            `layers` only these must be given, and what is not given is left out.
        q_len: Rows.
        kv_len: Keys; `q_len` if not given.
        q_offset: Position of the first row; `kv_len - q_len` if not given.
        head, layer, batch: Of the head.
        heads, kv_heads, layers: Sizes; `kv_heads` is `heads` if only that is given.

    Raises:
        ArgumentError: One is missing, out of range or no integer.
    """
    q_len = integer("q_len", q_len, least=0)
    kv_len = q_len if kv_len is None else integer("kv_len", kv_len, least=0)
    q_offset = kv_len - q_len if q_offset is None else integer("q_offset", q_offset)
    scalars = {"q_len": q_len, "kv_len": kv_len, "q_offset": q_offset}
    group, most_heads, most_layers = 1, LIMIT, LIMIT
    if heads is not None:
        heads = integer("heads", heads, least=1)
        kv_heads = heads if kv_heads is None else integer("kv_heads", kv_heads, least=1)
        if heads % kv_heads != 0:
            raise ArgumentError(
                f"`heads` is {heads} and `kv_heads` {kv_heads}; "
                "the first must be a multiple of the second"
            )
        scalars |= {"heads": heads, "kv_heads": kv_heads}
        group, most_heads = heads // kv_heads, heads
    elif kv_heads is not None:
        raise ArgumentError("`heads` was not given but `kv_heads` was; give both")
    elif not reads.isdisjoint(("heads", "kv_heads", "kv_head")):
        raise ArgumentError("`heads` was not given; the pattern reads the number of heads")
    if layers is not None:
        scalars["layers"] = most_layers = integer("layers", layers, least=1)
    elif "layers" in reads:
        raise ArgumentError("`layers` was not given; the pattern reads the number of layers")
    head = integer("head", head, 0, most_heads - 1)
    return scalars | {
        "head": head,
        "kv_head": head // group,
        "layer": integer("layer", layer, 0, most_layers - 1),
        "batch": integer("batch", batch, least=0),
    }
