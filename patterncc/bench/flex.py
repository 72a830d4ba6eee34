"""FlexAttention of torch, compiled, on its Triton kernels or on those of FlashAttention-4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch._inductor import config as inductor_config
from torch.nn.attention.flex_attention import (
    BlockMask,
    FlexKernelOptions,
    create_block_mask,
    flex_attention,
)

from patterncc.bench.fa4 import why_no_fa4
from patterncc.bench.mask_function import MaskFunction, mask_text, segment_tensors
from patterncc.bench.peer import Ready
from patterncc.bench.request import Request
from patterncc.dsl.errors import UnsupportedError


class Flex:
    """FlexAttention by one of its kernels.

    Args:
        kernel: `TRITON` or `FLASH`, as its option `BACKEND` has them.
    """

    fused = True

    def __init__(self, kernel: str) -> None:
        self._kernel = kernel

    def why_not(self, device: torch.device) -> str:
        """On a GPU it needs the kernels; on a CPU it has one of its own."""
        if self._kernel == "FLASH":
            missing = why_no_fa4(device)
            if missing:
                return missing
        if device.type == "cuda" and not _has_backends() and self._kernel == "FLASH":
            return f"torch {torch.__version__} has no such kernels"
        return ""

    def bind(self, request: Request) -> Ready:
        """Compiled FlexAttention under the mask of a request, as a block mask.

        Raises:
            UnsupportedError: The pattern has no mask function.
        """
        call, device = request.call, torch.device(request.device)
        text = mask_text(request)
        tables = request.tables()
        read = dict(tables)
        function = text.function(read) if text is not None else None
        heads = call.heads if call.differs_by_head else None
        batch = request.batch if "batch" in call.reads else None
        sizes = (batch, heads, call.q_len, call.kv_len)
        masks: list[BlockMask | None] = [None]
        options: dict[str, Any] = {"enable_gqa": call.heads != call.kv_heads}
        if device.type == "cuda" and _has_backends():
            options["kernel_options"] = {"BACKEND": self._kernel}
        attention = _compiled(flex_attention)

        def rebuild() -> int:
            if text is None or function is None:
                return 0
            found = segment_tensors(text.segments, request, tables)
            read.update(found)
            mask = block_mask(function, *sizes, device)
            masks[0] = mask
            held = [part for part in mask.as_tuple() if isinstance(part, Tensor)]
            return sum(part.nbytes for part in [*held, *found.values()])

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attention(query, key, value, block_mask=masks[0], **options)  # type: ignore[no-any-return]

        if device.type == "cpu" and request.problem.dtype == "float64":
            raise UnsupportedError("its kernel for CPUs has no float64")
        return Ready(attend, rebuild)


def block_mask(
    function: MaskFunction,
    batch: int | None,
    heads: int | None,
    q_len: int,
    kv_len: int,
    device: torch.device,
) -> BlockMask:
    """The block mask of a function, in blocks of FlexAttention's usual size.

    That size is 128, and with smaller ones it has no gradients at a head dimension of 128 on
    Hopper: the only config of its backward that it takes untold has tiles of 128 (torch 2.13).
    Masks that differ by head or batch entry are made for one of them after the other: all pairs of
    16 heads at once, as 64-bit numbers, are 32 GiB at 16,384 tokens. Nothing is compiled, as
    `torch.compile(create_block_mask)` was not done after a minute at that length.

    Args:
        function: Of batch, head, row and key.
        batch: Entries whose masks differ; `None` if they do not.
        heads: The same of heads.
        q_len: Rows.
        kv_len: Keys.
        device: Where it will be used.
    """
    if batch is None and heads is None:
        return create_block_mask(function, None, None, q_len, kv_len, device=device)
    entries, each = batch or 1, heads or 1
    parts = []
    for place in range(entries * each):

        def one(batch: Tensor, head: Tensor, row: Tensor, k: Tensor, place: int = place) -> Tensor:
            return function(batch + place // each, head + place % each, row, k)

        parts.append(create_block_mask(one, None, None, q_len, kv_len, device=device))

    def joined(name: str) -> Tensor:
        found = torch.cat([getattr(part, name) for part in parts])
        return found.view(entries, each, *found.shape[2:])

    return BlockMask.from_kv_blocks(
        joined("kv_num_blocks"),
        joined("kv_indices"),
        joined("full_kv_num_blocks"),
        joined("full_kv_indices"),
        BLOCK_SIZE=parts[0].BLOCK_SIZE,
        mask_mod=function,
        seq_lengths=(q_len, kv_len),
    )


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled whole; where torch would give up and interpret it, it fails instead."""
    inductor_config.compile_threads = 1  # there is a process for each mask; no pool in each of them
    dynamo_config.fail_on_recompile_limit_hit = True
    return torch.compile(function, fullgraph=True)


def _has_backends() -> bool:
    """Whether this torch lets a caller choose the kernels; older ones have Triton's alone."""
    return "BACKEND" in FlexKernelOptions.__annotations__
