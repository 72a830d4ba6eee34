"""The public interface: `compile`, `attention` and the class `Attention`.

Loads no torch until something needs it (hence the imports inside functions), so that a pattern can
be checked, printed and explained without.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias, overload

from patterncc import pipeline
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.pattern import Pattern
from patterncc.pipeline import Signature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from patterncc.codegen.config import KernelConfig
    from patterncc.codegen.problem import DType

Source: TypeAlias = "str | os.PathLike[str] | Pattern"


def compile(
    source: Source, *, name: str | None = None, file: str | None = None, **values: int
) -> Attention:
    """Reads a pattern and returns what computes attention under it.

    Kernels are generated when a call needs them and kept; they serve every length, offset and
    run-time number.

    Args:
        source: The pattern's text, the name of a library pattern, a path (a string that ends in
            `.pat` or a path object), or a `Pattern`.
        name: Which pattern of the text, if not the last.
        file: What messages call the text; the path if there is one.
        **values: Parameters by name. One that is fixed when compiled becomes a constant, a run-time
            one gets this default.

    Raises:
        PatternError: The text is wrong; the error lists every mistake with its place.
        ArgumentError: A value is wrong.
        OSError: The file cannot be read.
    """
    if isinstance(source, Pattern):
        if not values and name is None:
            return Attention(source)
        return Attention(load(source.text, name=name, file=file, **values))
    text, path = pipeline.read_source(source)
    return Attention(load(text, name=name, file=file or path, **values))


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source: Source,
    *,
    return_lse: Literal[False] = False,
    layer: int = 0,
    layers: int | None = None,
    q_offset: int | None = None,
    scale: float | None = None,
    **values: int | Tensor,
) -> Tensor: ...
@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source: Source,
    *,
    return_lse: Literal[True],
    layer: int = 0,
    layers: int | None = None,
    q_offset: int | None = None,
    scale: float | None = None,
    **values: int | Tensor,
) -> tuple[Tensor, Tensor]: ...
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source: Source,
    *,
    return_lse: bool = False,
    layer: int = 0,
    layers: int | None = None,
    q_offset: int | None = None,
    scale: float | None = None,
    **values: int | Tensor,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention in one call: `compile(source)(query, key, value, ...)`, where texts used lately are
    read only once.

    A file is read at every call, and parsed again when its text has changed. See
    `Attention.__call__` for the arguments.
    """
    from patterncc import ops

    if isinstance(source, Pattern):
        signature = Signature.of(source)
    else:
        signature = ops.signature_of(os.fspath(source))
    results = ops.attend(
        signature,
        query,
        key,
        value,
        scale=scale,
        q_offset=q_offset,
        layer=layer,
        layers=layers,
        values=values,
    )
    return results if return_lse else results[0]


class Attention:
    """A compiled pattern: call it on tensors, or ask what it does.

    A value: equal and hashed by its canonical text, and it pickles as that text.
    """

    __slots__ = ("_pattern", "_signature")

    def __init__(self, pattern: Pattern) -> None:
        """Wraps a pattern that has been checked; `patterncc.compile` is the usual way."""
        self._pattern = pattern
        self._signature = Signature.of(pattern)

    @property
    def pattern(self) -> Pattern:
        """The checked pattern."""
        return self._pattern

    @property
    def text(self) -> str:
        """The canonical text, which is its identity."""
        return self.pattern.text

    @overload
    def __call__(
        self,
        /,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        return_lse: Literal[False] = False,
        layer: int = 0,
        layers: int | None = None,
        q_offset: int | None = None,
        scale: float | None = None,
        **values: int | Tensor,
    ) -> Tensor: ...
    @overload
    def __call__(
        self,
        /,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        return_lse: Literal[True],
        layer: int = 0,
        layers: int | None = None,
        q_offset: int | None = None,
        scale: float | None = None,
        **values: int | Tensor,
    ) -> tuple[Tensor, Tensor]: ...
    def __call__(
        self,
        /,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        return_lse: bool = False,
        layer: int = 0,
        layers: int | None = None,
        q_offset: int | None = None,
        scale: float | None = None,
        **values: int | Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention under the pattern: `softmax(scale * query @ key.mT) @ value` over the keys that
        each row may see.

        Runs where the tensors are. Strides are free: `[batch, length, heads, head_dim]` tensors
        seen through `transpose(1, 2)`, slices and expanded tensors are read in place.

        Args:
            query: `[batch, heads, q_len, head_dim]`; float16, bfloat16, float32 or float64.
            key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
            value: `[batch, kv_heads, kv_len, value_head_dim]`.
            return_lse: Whether to return the log-sum-exp besides.
            layer: Layer number, for patterns that read it.
            layers: Number of layers, for patterns that read it.
            q_offset: Position of the first row; `kv_len - q_len` if not given, so that the last row
                is the last position.
            scale: Factor of the scores; `head_dim ** -0.5` if not given.
            **values: Run-time parameters of the pattern by name, in place of their defaults.

        Returns:
            The output `[batch, heads, q_len, value_head_dim]`, of the dtype of `query`; with
            `return_lse` also the natural log-sum-exp of the visible scores `[batch, heads, q_len]`,
            float32 (float64 for float64). A row that sees no key gets 0 and -inf.

        Raises:
            ArgumentError: An argument is missing, unknown or does not fit; the message names it.
            UnsupportedError: The pattern, device or dtype has no kernel, or an input needs grad
                (there is no backward yet).
        """
        from patterncc import ops

        results = ops.attend(
            self._signature,
            query,
            key,
            value,
            scale=scale,
            q_offset=q_offset,
            layer=layer,
            layers=layers,
            values=values,
        )
        return results if return_lse else results[0]

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
        from patterncc import arguments
        from patterncc.codegen import reference

        scalars = self._scalars(
            q_len, kv_len, head, layer, q_offset, heads, kv_heads, layers, batch
        )
        numbers, tables = arguments.bind(self._signature, values)
        arguments.check_tables(self.pattern, tables, scalars)
        return reference.mask(
            self.pattern,
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
            **values: Run-time numbers by name.

        Returns:
            uint8 `[ceil(q_len / block_q), ceil(kv_len / block_k)]`, on the CPU: 0 empty, 1 partial,
            2 full.

        Raises:
            ArgumentError: An argument is missing, unknown or does not fit.
            UnsupportedError: The pattern has a term that is not lowered yet.
        """
        import torch

        from patterncc import arguments
        from patterncc.codegen import schedule

        block_q = arguments.integer("block_q", block_q, least=1)
        block_k = arguments.integer("block_k", block_k, least=1)
        scalars = self._scalars(
            q_len, kv_len, head, layer, q_offset, heads, kv_heads, layers, batch
        )
        numbers, _ = arguments.bind(self._signature, values)
        resolved = pipeline.resolve(self.pattern.structure)
        program = pipeline.program(
            self.pattern.structure,
            block_q,
            block_k,
            tuple((size, scalars[size]) for size in resolved.sizes),
            0 <= scalars["q_offset"] <= scalars["kv_len"] - scalars["q_len"],
        )
        env = scalars | dict(zip(resolved.numbers, numbers, strict=True))
        return torch.from_numpy(schedule.block_map(program, env))

    def _scalars(
        self,
        q_len: int,
        kv_len: int | None,
        head: int,
        layer: int,
        q_offset: int | None,
        heads: int | None,
        kv_heads: int | None,
        layers: int | None,
        batch: int,
    ) -> dict[str, int]:
        """The coordinates and sizes of one head of a call by name, checked; sizes that nothing gave
        are left out."""
        from patterncc.arguments import LIMIT, integer

        reads = pipeline.resolve(self.pattern.structure).reads
        scalars = {"q_len": integer("q_len", q_len, least=0)}
        scalars["kv_len"] = (
            scalars["q_len"] if kv_len is None else integer("kv_len", kv_len, least=0)
        )
        scalars["q_offset"] = (
            scalars["kv_len"] - scalars["q_len"]
            if q_offset is None
            else integer("q_offset", q_offset)
        )
        if heads is None and kv_heads is not None:
            raise ArgumentError("`heads` was not given but `kv_heads` was; give both")
        if heads is not None:
            scalars["heads"] = integer("heads", heads, least=1)
            scalars["kv_heads"] = (
                scalars["heads"] if kv_heads is None else integer("kv_heads", kv_heads, least=1)
            )
            if scalars["heads"] % scalars["kv_heads"] != 0:
                raise ArgumentError(
                    f"`heads` is {heads} and `kv_heads` {kv_heads}; "
                    "the first must be a multiple of the second"
                )
        elif reads & {"heads", "kv_heads", "kv_head"}:
            raise ArgumentError("`heads` was not given; the pattern reads the number of heads")
        if layers is not None:
            scalars["layers"] = integer("layers", layers, least=1)
        elif "layers" in reads:
            raise ArgumentError("`layers` was not given; the pattern reads the number of layers")
        scalars["head"] = integer("head", head, 0, scalars.get("heads", LIMIT) - 1)
        group = scalars.get("heads", 1) // scalars.get("kv_heads", 1)
        scalars["kv_head"] = scalars["head"] // group
        scalars["layer"] = integer("layer", layer, 0, scalars.get("layers", LIMIT) - 1)
        scalars["batch"] = integer("batch", batch, least=0)
        return scalars

    def emit(
        self,
        stage: str = "ir",
        *,
        after: str | None = None,
        dtype: DType = "bfloat16",
        head_dim: int = 128,
        value_head_dim: int | None = None,
        group: int = 1,
        config: KernelConfig | None = None,
        target: str = "cuda:90",
        sizes: Mapping[str, int] | None = None,
    ) -> str:
        """The text of one stage of compilation, one of `patterncc.pipeline.STAGES`.

        Args:
            stage: Name of the stage.
            after: For `ir`: the pass after which to look, one of `patterncc.pipeline.pass_names()`;
                the last if not given.
            dtype: Of the tensors.
            head_dim: Of query and key.
            value_head_dim: Of value; `head_dim` if not given.
            group: Query heads for each key/value head.
            config: Tile shape, warps and stages of the kernel.
            target: What to compile for, such as `cuda:90` or `hip:gfx942`; no such device is
                needed.
            sizes: `heads`, `kv_heads`, `layers`, where the pattern divides by them.

        Raises:
            ConfigError: There is no such stage, pass or target.
            UnsupportedError: The pattern, or the target, cannot be compiled to that stage.
        """
        compilation = pipeline.Compilation(
            self.pattern,
            problem=Problem(dtype, head_dim, value_head_dim or head_dim, group),
            config=config,
            target=target,
            sizes=sizes,
        )
        return compilation.text(stage, after)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attention) and self.pattern.text == other.pattern.text

    def __hash__(self) -> int:
        return hash(self.pattern.text)

    def __repr__(self) -> str:
        return f"patterncc.compile({self.pattern.text!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self._pattern.text, self._pattern.name)


def _restore(text: str, name: str) -> Attention:
    """An `Attention` from what identifies it, and the name that its text was read under."""
    return Attention(replace(load(text), name=name))
