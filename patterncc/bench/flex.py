"""FlexAttention of torch, compiled, on its Triton kernels or on those of FlashAttention-4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

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
from patterncc.bench.mask_function import mask_text, segment_tensors
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
        # Documents change with every batch, so a caller compiles what makes their masks.
        create = cast(
            Callable[..., BlockMask],
            torch.compile(create_block_mask) if request.packed else create_block_mask,
        )
        options: dict[str, Any] = {"enable_gqa": call.heads != call.kv_heads}
        if device.type == "cuda" and _has_backends():
            options["kernel_options"] = {"BACKEND": self._kernel}
        attention = _compiled(flex_attention)

        def rebuild() -> int:
            if text is None or function is None:
                return 0
            found = segment_tensors(text.segments, request, tables)
            read.update(found)
            mask = create(function, *sizes, device=device)
            masks[0] = mask
            held = [part for part in mask.as_tuple() if isinstance(part, Tensor)]
            return sum(part.nbytes for part in [*held, *found.values()])

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attention(query, key, value, block_mask=masks[0], **options)  # type: ignore[no-any-return]

        if device.type == "cpu" and request.problem.dtype == "float64":
            raise UnsupportedError("its kernel for CPUs has no float64")
        return Ready(attend, rebuild, note="block mask compiled" if request.packed else "")


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled whole; where torch would give up and interpret it, it fails instead."""
    inductor_config.compile_threads = 1  # there is a process for each mask; no pool in each of them
    dynamo_config.fail_on_recompile_limit_hit = True
    return torch.compile(function, fullgraph=True)


def _has_backends() -> bool:
    """Whether this torch lets a caller choose the kernels; older ones have Triton's alone."""
    return "BACKEND" in FlexKernelOptions.__annotations__
