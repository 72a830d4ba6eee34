"""What a compiled pattern says about itself without tensors: live keys, sharding, reach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from patterncc import signatures
from patterncc.codegen.problem import Problem
from patterncc.dsl import load

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch import Tensor

    from patterncc.call import Call
    from patterncc.codegen.facts.reach import Reach
    from patterncc.codegen.facts.sharding import Placement, ShardPlan
    from patterncc.codegen.problem import DType
    from patterncc.dsl.pattern import Pattern
    from patterncc.signatures import Signature


class Facts:
    """The part of `Attention` that answers questions from the relation alone."""

    __slots__ = ()

    if TYPE_CHECKING:
        _pattern: Pattern
        _signature: Signature

    def live_keys(
        self,
        /,
        t: int,
        layer: int = 0,
        head: int = 0,
        *,
        kv_len: int | None = None,
        heads: int | None = None,
        kv_heads: int | None = None,
        layers: int | None = None,
        batch: int = 0,
        **values: int,
    ) -> Tensor:
        """Which keys a cache must keep at a time: those that a query at `t` or later may read.

        Args:
            t: The time: the position of the query that comes next.
            layer: Layer number.
            head: Query head.
            kv_len: Length of all calls to come. If not given, calls to come have any length: where
                the pattern reads `kv_len`, a key is live if it is read under any that is possible.
            heads, kv_heads, layers, batch: As for `mask`.
            **values: Run-time numbers by name.

        Returns:
            bool `[t + 1]`, on the CPU.

        Raises:
            ArgumentError: An argument is missing, unknown or does not fit.
            UnsupportedError: The live keys are not known; the message names the term.
        """
        import torch

        from patterncc.arguments import integer
        from patterncc.dsl.mask import SIZES
        from patterncc.live import MOST_TIME, live_set

        t = integer("t", t, 0, MOST_TIME)
        kv_len = None if kv_len is None else integer("kv_len", kv_len, least=t + 1)
        env, pattern = self._head(
            kv_len or t + 1, head, layer, heads, kv_heads, layers, batch, values
        )
        sizes = {name: value for name, value in env.items() if name in SIZES}
        live = live_set(pattern, sizes, kv_len)
        return torch.from_numpy(live.keys(t, env).copy())

    def live_text(self, /, *, kv_len: int | None = None, **values: int) -> str:
        """Which keys `live_keys` says are live at `t`, in closed form: `k < 4, or k ≥ t − 4095`.

        Args:
            kv_len: As for `live_keys`.
            **values: Run-time numbers, and coordinates and sizes that are known, by name; what has
                no value is written by its name.

        Raises:
            ArgumentError: An argument is unknown or no integer.
            ConfigError: A number without a value is called `t`, as the time is.
            UnsupportedError: The live keys are not known; the message names the term.
        """
        from patterncc import live_text
        from patterncc.arguments import integer
        from patterncc.dsl.mask import COORDINATES, SIZES
        from patterncc.live import live_set
        from patterncc.parameters import check_names

        known = {*COORDINATES, *SIZES} - {"q", "k", "q_len", "kv_len"}
        check_names(self._signature, values.keys() - known)
        given = {name: integer(name, value) for name, value in values.items()}
        numbers = {name: value for name, value in given.items() if name not in known}
        pattern = load(self._pattern.text, name=None, file=None, **numbers)
        sizes = {name: value for name, value in given.items() if name in known}
        return live_text.live_text(live_set(pattern, sizes, kv_len).form)

    def shard_plan(
        self,
        /,
        ranks: int,
        q_len: int,
        *,
        placement: Placement = "contiguous",
        stripe: int = 1,
        heads: int = 1,
        kv_heads: int | None = None,
        layers: int = 1,
        batch: int = 0,
        dtype: DType = "bfloat16",
        head_dim: int = 128,
        value_head_dim: int | None = None,
        **values: int,
    ) -> ShardPlan:
        """Plans context parallelism: which keys each rank fetches from which others.

        Args:
            ranks: Ranks that share one sequence.
            q_len: Tokens of the whole sequence, all of them queries and keys.
            placement: How tokens are dealt out: `contiguous`, `zigzag` (two chunks a rank, one
                from each end) or `striped`.
            stripe: Tokens of a stripe.
            heads: Number of query heads.
            kv_heads: Number of key/value heads; `heads` if not given.
            layers: Number of layers; all are planned for.
            batch: Index in the batch.
            dtype: Of keys and values, for the count of bytes.
            head_dim: Of keys.
            value_head_dim: Of values; `head_dim` if not given.
            **values: Run-time numbers by name.

        Raises:
            ArgumentError: An argument is missing, unknown or does not fit.
            ConfigError: A size cannot be.
            UnsupportedError: The plan is not known; the message names the term.
        """
        from patterncc.codegen.facts.sharding import Shards, shard_plan

        call = self._call(q_len, None, None, heads, kv_heads, layers, batch, values)
        return shard_plan(
            call.pattern,
            Shards(ranks, q_len, placement, stripe),
            Problem(dtype, head_dim, value_head_dim or head_dim),
            call.sizes,
            batch=batch,
        )

    def reach(
        self,
        /,
        layers: int,
        q_len: int,
        *,
        heads: int = 1,
        kv_heads: int | None = None,
        batch: int = 0,
        plot: str | os.PathLike[str] | None = None,
        **values: int,
    ) -> Reach:
        """How far information travels to the last position of a sequence through a stack of layers
        that have this pattern, each of which also keeps its own input.

        Args:
            layers: Layers of the stack, from layer 0 on.
            q_len: Tokens of the sequence, all of them queries and keys.
            heads: Number of query heads, which are joined.
            kv_heads: Number of key/value heads; `heads` if not given.
            batch: Index in the batch.
            plot: A .png, .svg or .pdf file to draw it in.
            **values: Run-time numbers by name.

        Raises:
            ArgumentError: An argument is missing, unknown or does not fit.
            ConfigError: A size cannot be, or the picture cannot be drawn.
            UnsupportedError: The reach is not known; the message says why.
            OSError: The file cannot be written.
        """
        from patterncc.codegen.facts.reach import reach

        call = self._call(q_len, None, None, heads, kv_heads, layers, batch, values)
        found = reach(call.pattern, q_len, layers, call.sizes, batch=batch)
        if plot is not None:
            from patterncc import reach_plot

            reach_plot.save(found, call.pattern, Path(plot))
        return found

    def _head(
        self,
        kv_len: int,
        head: int,
        layer: int,
        heads: int | None,
        kv_heads: int | None,
        layers: int | None,
        batch: int,
        values: Mapping[str, int],
    ) -> tuple[dict[str, int], Pattern]:
        """The scalars of one head without the lengths, and the pattern with its numbers."""
        from patterncc.parameters import bind_numbers
        from patterncc.sizes import head_scalars

        reads = signatures.resolve(self._pattern.structure).reads
        env = head_scalars(reads, kv_len, kv_len, 0, head, layer, heads, kv_heads, layers, batch)
        numbers = bind_numbers(self._signature, values)
        given = dict(zip(self._signature.numbers, numbers, strict=True))
        for name in ("q_len", "kv_len", "q_offset"):
            del env[name]
        return env | given, load(self._pattern.text, name=None, file=None, **given)

    def _call(
        self,
        q_len: int,
        kv_len: int | None,
        q_offset: int | None,
        heads: int,
        kv_heads: int | None,
        layers: int,
        batch: int,
        values: Mapping[str, object],
    ) -> Call:
        """A call of the pattern for what looks at it without tensors."""
        from patterncc.call import Call
        from patterncc.parameters import bind_arrays, bind_numbers

        numbers = bind_numbers(self._signature, values)
        given = dict(zip(self._signature.numbers, numbers, strict=True))
        sizes = {"heads": heads, "kv_heads": kv_heads or heads, "layers": layers}
        keys = q_len if kv_len is None else kv_len
        positions = keys if q_offset is None else max(keys, q_offset + q_len)
        tables = bind_arrays(self._pattern.tables, values, sizes, positions)
        pattern = load(self._pattern.text, name=None, file=None, **given)
        return Call.of(
            replace(pattern, name=self._pattern.name),
            q_len,
            kv_len,
            q_offset,
            heads=heads,
            kv_heads=kv_heads,
            layers=layers,
            batch=batch,
            tables=tables,
        )
