"""The peers that `--peers` knows, in the order of tables. Loads none of them."""

from __future__ import annotations

from patterncc.bench.peer import PeerSpec
from patterncc.dsl.errors import ConfigError

OWN = "patterncc"

_SDPA = "patterncc.bench.sdpa"
_FLEX = "patterncc.bench.flex"

PEERS = (
    PeerSpec(OWN, "this compiler", "patterncc.bench.own", "Own"),
    PeerSpec("flex", "FlexAttention on Triton, compiled", _FLEX, "Flex", ("TRITON",)),
    PeerSpec(
        "flex-flash",
        "FlexAttention on the kernels of FlashAttention-4, compiled",
        _FLEX,
        "Flex",
        ("FLASH",),
    ),
    PeerSpec(
        "fa4", "FlashAttention-4 (flash-attn-4) called directly", "patterncc.bench.fa4", "Fa4"
    ),
    PeerSpec("sdpa-cudnn", "SDPA of torch, cuDNN's kernel", _SDPA, "Sdpa", ("cudnn",)),
    PeerSpec("sdpa-flash", "SDPA of torch, its flash kernel", _SDPA, "Sdpa", ("flash",)),
    PeerSpec(
        "sdpa-efficient", "SDPA of torch, memory-efficient kernel", _SDPA, "Sdpa", ("efficient",)
    ),
    PeerSpec("sdpa-dense-mask", "SDPA of torch, the mask as a tensor", _SDPA, "Sdpa", ("mask",)),
)


def peers_named(names: str | None) -> tuple[PeerSpec, ...]:
    """The peers of a list such as `flex,fa4`, ourselves first; all if none is given.

    Raises:
        ConfigError: There is no such peer.
    """
    if names is None:
        return PEERS
    known = {peer.name: peer for peer in PEERS}
    asked = [OWN, *filter(None, names.split(","))]
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ConfigError(f"--peers has {unknown[0]!r}, which is no peer", tuple(known))
    return tuple(known[name] for name in dict.fromkeys(asked))
