"""FlashAttention-4 (the package flash-attn-4), called directly.

It knows full, causal and window masks, and the same within packed documents. Its lists of blocks
need, for tiles that are seen in part, a mask written in its own kernel language: that is what
`flex-flash` generates for it.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch
from torch import Tensor

from patterncc.bench.band import Band, band_of
from patterncc.bench.peer import Ready
from patterncc.bench.request import Request
from patterncc.dsl.errors import UnsupportedError

_MODULE = "flash_attn.cute.interface"
_LEAST = (9, 0)  # compute capability


class Fa4:
    """FlashAttention-4 by its own interface."""

    fused = True

    def why_not(self, device: torch.device) -> str:
        """It needs its package and Hopper or later."""
        return why_no_fa4(device)

    def bind(self, request: Request) -> Ready:
        """Attention under a band.

        Raises:
            UnsupportedError: The pattern is no band, or rows do not end with the keys.
        """
        call = request.call
        band = band_of(call, request.layer)
        if band is None:
            raise UnsupportedError(
                "it knows full, causal, windows and packed documents; other masks need one written "
                "in CuTe, as flex-flash does"
            )
        if call.q_offset != call.kv_len - call.q_len:
            raise UnsupportedError("its masks end with the last row at the last key")
        return _packed(request, band) if band.documents else _single(band)


def why_no_fa4(device: torch.device) -> str:
    """Why FlashAttention-4 does not run on a device; "" if it does."""
    if device.type != "cuda":
        return "it has kernels for NVIDIA GPUs alone"
    if torch.cuda.get_device_capability(device) < _LEAST:
        return "it needs compute capability 9.0 or later"
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn-4 is not installed (pip install 'flash-attn-4[cu13]')"
    try:
        importlib.import_module(_MODULE)
    except Exception as error:  # of any package below
        lines = str(error).strip().splitlines() or [""]
        return f"flash-attn-4 cannot be imported: {type(error).__name__}: {lines[0][:200]}"
    return ""


def _single(band: Band) -> Ready:
    function = importlib.import_module(_MODULE).flash_attn_func
    window = (None, None) if band.causal else (band.left, band.right)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = function(query, key, value, causal=band.causal, window_size=window)[0]
        return out

    return Ready(attend, lambda: 0, tokens_first=True)


def _packed(request: Request, band: Band) -> Ready:
    """Documents by `cu_seqlens`, all batch entries end to end."""
    function = importlib.import_module(_MODULE).flash_attn_varlen_func
    call, batch = request.call, request.batch
    bounds = call.tables[band.documents]
    if call.q_len != call.kv_len or int(bounds[-1]) != call.kv_len:
        raise UnsupportedError("its documents have to fill rows and keys to the end")
    longest = int((bounds[1:] - bounds[:-1]).max())
    window = (band.left, band.right)
    causal = window == (None, 0)
    given = request.tables()[band.documents]
    lengths: list[Tensor] = []

    def rebuild() -> int:
        starts = torch.arange(batch, device=given.device)[:, None] * call.kv_len
        ends = (starts + given[1:]).flatten()
        lengths[:] = [torch.nn.functional.pad(ends, (1, 0)).int()]
        return lengths[0].nbytes

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = function(
            query.flatten(0, 1),
            key.flatten(0, 1),
            value.flatten(0, 1),
            cu_seqlens_q=lengths[0],
            cu_seqlens_k=lengths[0],
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            causal=causal,
            window_size=(None, None) if causal else window,
        )[0]
        return out.view(batch, call.q_len, *out.shape[1:])

    return Ready(attend, rebuild, tokens_first=True)
