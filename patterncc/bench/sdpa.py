"""`torch.nn.functional.scaled_dot_product_attention`, one of its kernels at a time.

A kernel is asked for by name, so torch never chooses another one in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from patterncc.bench.band import band_of
from patterncc.bench.peer import Ready
from patterncc.bench.request import Request
from patterncc.dsl.errors import UnsupportedError
from patterncc.rivals import MOST_MASK
from patterncc.verdict import mask_rows

_KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


class Sdpa:
    """SDPA by one of its kernels.

    Args:
        kernel: `cudnn`, `flash`, `efficient`: without a mask; `mask`: with the mask as a tensor, by
            the fused kernel that takes one (flash on a CPU, memory-efficient on a GPU).
    """

    fused = True

    def __init__(self, kernel: str) -> None:
        self._kernel = kernel

    def why_not(self, device: torch.device) -> str:
        """cuDNN and the memory-efficient kernel are for GPUs."""
        if device.type == "cpu" and self._kernel in ("cudnn", "efficient"):
            return "it has no kernel for CPUs"
        if self._kernel == "cudnn" and torch.backends.cudnn.version() is None:  # type: ignore[no-untyped-call]
            return "this torch has no cuDNN"
        return ""

    def bind(self, request: Request) -> Ready:
        """SDPA under the mask of a request.

        Raises:
            UnsupportedError: The kernel cannot do the pattern, or its mask is too large.
        """
        if self._kernel == "mask":
            return self._masked(request)
        call = request.call
        band = band_of(call, request.layer)
        if band is None or not (band.full or band.causal):
            raise UnsupportedError("torch gives this kernel no mask but causal")
        if band.causal and (call.q_len != call.kv_len or call.q_offset):
            raise UnsupportedError("torch's causal wants all rows from position 0")
        kernel, grouped, causal = _KERNELS[self._kernel], call.heads != call.kv_heads, band.causal

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            with sdpa_kernel(kernel):
                return scaled_dot_product_attention(
                    query, key, value, is_causal=causal, enable_gqa=grouped
                )

        return Ready(attend, lambda: 0)

    def _masked(self, request: Request) -> Ready:
        call, device = request.call, torch.device(request.device)
        heads = call.heads if call.differs_by_head else 1
        batches = request.batch if "batch" in call.reads else 1
        size, most = batches * heads * call.q_len * call.kv_len, MOST_MASK[device.type]
        if size > most:
            raise UnsupportedError(
                f"its mask takes {size / 2**30:.3g} GiB, more than {most / 2**30:.3g}"
            )
        kernel = _KERNELS["flash" if device.type == "cpu" else "efficient"]
        grouped = call.heads != call.kv_heads
        masks: list[Tensor] = []

        def rebuild() -> int:
            masks.clear()
            rows = torch.arange(call.q_len, device=device)
            found = [
                mask_rows(call, call.env(head, request.layer) | {"batch": batch}, rows)
                for batch in range(batches)
                for head in range(heads)
            ]
            mask = torch.stack(found).view(batches, heads, call.q_len, call.kv_len)
            if not mask.any(-1).all():
                raise UnsupportedError("rows without keys make it give no numbers")
            masks.append(mask)
            return mask.nbytes

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            with sdpa_kernel(kernel):
                return scaled_dot_product_attention(
                    query, key, value, attn_mask=masks[0], enable_gqa=grouped
                )

        return Ready(attend, rebuild)
