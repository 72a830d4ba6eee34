"""What a compiled pattern allows, pair by pair and tile by tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patterncc import programs, signatures

if TYPE_CHECKING:
    from torch import Tensor

    from patterncc.dsl.pattern import Pattern
    from patterncc.signatures import Signature


class Masks:
    """The part of `Attention` that computes masks and maps of tiles."""

    __slots__ = ()

    if TYPE_CHECKING:
        _pattern: Pattern
        _signature: Signature

    def mask(
        self,
        /,
        q_len: int,
        kv_len: int | None = None,
        head: int = 0,
        layer: int = 0,
        q_offset: int | None = None,
        *,
        heads: int | None = None,
        kv_heads: int | None = None,
        layers: int | None = None,
        batch: int = 0,
        **values: int | Tensor,
    ) -> Tensor:
        """The mask of one head, evaluated straight from the text at every pair of positions: the
        oracle.

        Args:
            q_len: Rows.
            kv_len: Keys; `q_len` if not given.
            head: Query head.
            layer: Layer number.
            q_offset: Position of the first row; `kv_len - q_len` if not given.
            heads: Number of query heads, where the pattern reads it or `kv_head`.
            kv_heads: Number of key/value heads; `heads` if not given.
            layers: Number of layers, where the pattern reads it.
            batch: Index in the batch.
            **values: Run-time numbers, tables and segments by name.

        Returns:
            bool `[q_len, kv_len]`, on the CPU.

        Raises:
            ArgumentError: An argument is missing, unknown or does not fit.
        """
        from patterncc.codegen import reference
        from patterncc.parameters import bind_on_host
        from patterncc.sizes import head_scalars

        reads = signatures.resolve(self._pattern.structure).reads
        scalars = head_scalars(
            reads, q_len, kv_len, q_offset, head, layer, heads, kv_heads, layers, batch
        )
        numbers, tables = bind_on_host(self._signature, self._pattern.tables, values, scalars)
        return reference.mask(
            self._pattern,
            **scalars,
            values=dict(zip(self._signature.numbers, numbers, strict=True)),
            tables=dict(zip(self._signature.tables, tables, strict=True)),
        )

    def block_map(
        self,
        /,
        q_len: int,
        kv_len: int | None = None,
        block_q: int = 128,
        block_k: int = 128,
        head: int = 0,
        layer: int = 0,
        q_offset: int | None = None,
        *,
        heads: int | None = None,
        kv_heads: int | None = None,
        layers: int | None = None,
        batch: int = 0,
        **values: int | Tensor,
    ) -> Tensor:
        """What a kernel does with each tile of one head, from the block IR.

        Tiles are counted from the first row and from key 0. A tile that hangs over the last key is
        never full; rows past the last one do not matter.

        Args:
            q_len: Rows.
            kv_len: Keys; `q_len` if not given.
            block_q: Rows of a tile.
            block_k: Keys of a tile.
            head, layer, q_offset, heads, kv_heads, layers, batch: As for `mask`.
            **values: Run-time numbers and tables by name.

        Returns:
            uint8 `[ceil(q_len / block_q), ceil(kv_len / block_k)]`, on the CPU: 0 empty, 1 partial,
            2 full.

        Raises:
            ArgumentError: An argument is missing, unknown or does not fit.
            UnsupportedError: The pattern has a term that is not lowered yet.
        """
        import torch

        from patterncc.arguments import integer
        from patterncc.codegen import schedule
        from patterncc.parameters import as_array, bind_on_host
        from patterncc.sizes import head_scalars

        block_q = integer("block_q", block_q, least=1)
        block_k = integer("block_k", block_k, least=1)
        resolved = signatures.resolve(self._pattern.structure)
        scalars = head_scalars(
            resolved.reads, q_len, kv_len, q_offset, head, layer, heads, kv_heads, layers, batch
        )
        numbers, tables = bind_on_host(self._signature, self._pattern.tables, values, scalars)
        program = programs.program(
            self._pattern.structure,
            block_q,
            block_k,
            tuple((size, scalars[size]) for size in resolved.sizes),
            0 <= scalars["q_offset"] <= scalars["kv_len"] - scalars["q_len"],
        )
        env: dict[str, Any] = scalars | dict(zip(resolved.numbers, numbers, strict=True))
        env |= dict(zip(self._signature.tables, map(as_array, tables), strict=True))
        return torch.from_numpy(schedule.block_map(program, env))
