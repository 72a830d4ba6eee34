"""`Attention`: a compiled pattern, called on tensors or asked what it does.

Loads no torch until something needs it (hence the imports inside methods), so that a pattern can be
read, printed and emitted without.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from patterncc import pipeline
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.score.terms import PLAIN, ScoreTerms, terms_of
from patterncc.fact_methods import Facts
from patterncc.pipeline import Signature
from patterncc.score_call import ScoreSignature
from patterncc.score_text import format_terms
from patterncc.tune_method import Tunable, refuse_terms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.problem import DType
    from patterncc.dsl.pattern import Pattern


class Attention(Facts, Tunable):
    """A compiled pattern: call it on tensors, or ask what it does.

    A value: equal and hashed by its canonical text, and it pickles as that text.

    Calls are whole graphs for `torch.compile`. Where layers are compiled one by one, each with a
    pattern of its own, torch counts every pattern as a recompilation of their shared code and stops
    at `torch._dynamo.config.recompile_limit`: compile the model as a whole, or raise the limit.
    """

    __slots__ = ("_autotune", "_pattern", "_score", "_signature", "_terms")

    def __init__(
        self, pattern: Pattern, terms: ScoreTerms = PLAIN, *, autotune: bool = False
    ) -> None:
        """Wraps a pattern and score terms that have been checked; `patterncc.compile` is the usual
        way.

        Raises:
            ArgumentError: A name means one thing in the pattern and another in the terms.
            UnsupportedError: `autotune` is asked for with score terms.
        """
        if autotune:
            refuse_terms(terms)
        self._autotune = autotune
        self._pattern = pattern
        self._signature = Signature.of(pattern)
        self._terms = terms
        self._score = None if terms.plain else ScoreSignature.of(terms)
        if self._score is not None:
            self._score.check_apart(self._signature)

    @property
    def pattern(self) -> Pattern:
        """The checked pattern."""
        return self._pattern

    @property
    def terms(self) -> ScoreTerms:
        """Which logits enter the softmax."""
        return self._terms

    @property
    def text(self) -> str:
        """The canonical text of the pattern, which with that of its terms is its identity."""
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
        **values: float | Tensor,
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
        **values: float | Tensor,
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
        **values: float | Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention under the pattern: `softmax(scale * query @ key.mT) @ value` over the keys that
        each row may see.

        Runs where the tensors are. Strides are free: `[batch, length, heads, head_dim]` tensors
        seen through `transpose(1, 2)`, slices and expanded tensors are read in place. The output
        and the log-sum-exp have gradients for query, key and value, and for the tables that score
        terms read.

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
            **values: Run-time parameters of the pattern by name, in place of their defaults, and
                the numbers and tables that its score terms read.

        Returns:
            The output `[batch, heads, q_len, value_head_dim]`, of the dtype of `query`; with
            `return_lse` also the natural log-sum-exp of the visible scores (with score terms of
            their logits, and of the sink's) `[batch, heads, q_len]`, float32 (float64 for float64).
            A row that sees no key gets 0 and -inf, or the sink's logit.

        Raises:
            ArgumentError: An argument is missing, unknown or does not fit; the message names it.
            UnsupportedError: The pattern, device or dtype has no kernel, or a derivative is asked
                for that there is not.
        """
        from patterncc import ops

        if self._autotune:
            where = {"layer": layer, "layers": layers, "q_offset": q_offset}
            self._settle((query, key, value), values, **where)
        results = ops.attend(
            self._signature,
            query,
            key,
            value,
            scale,
            q_offset,
            layer,
            layers,
            values,
            self._score,
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
        from patterncc.codegen import reference
        from patterncc.parameters import bind_on_host
        from patterncc.sizes import head_scalars

        reads = pipeline.resolve(self.pattern.structure).reads
        scalars = head_scalars(
            reads, q_len, kv_len, q_offset, head, layer, heads, kv_heads, layers, batch
        )
        numbers, tables = bind_on_host(self._signature, self.pattern.tables, values, scalars)
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
        resolved = pipeline.resolve(self.pattern.structure)
        scalars = head_scalars(
            resolved.reads, q_len, kv_len, q_offset, head, layer, heads, kv_heads, layers, batch
        )
        numbers, tables = bind_on_host(self._signature, self.pattern.tables, values, scalars)
        program = pipeline.program(
            self.pattern.structure,
            block_q,
            block_k,
            tuple((size, scalars[size]) for size in resolved.sizes),
            0 <= scalars["q_offset"] <= scalars["kv_len"] - scalars["q_len"],
        )
        env: dict[str, Any] = scalars | dict(zip(resolved.numbers, numbers, strict=True))
        env |= dict(zip(self._signature.tables, map(as_array, tables), strict=True))
        return torch.from_numpy(schedule.block_map(program, env))

    def explain(
        self,
        /,
        q_len: int = 4096,
        kv_len: int | None = None,
        q_offset: int | None = None,
        *,
        heads: int = 1,
        kv_heads: int | None = None,
        layers: int = 1,
        batch: int = 0,
        block_q: int = 128,
        block_k: int = 128,
        dtype: DType = "bfloat16",
        head_dim: int = 128,
        value_head_dim: int | None = None,
        **values: Any,
    ) -> str:
        """What the pattern means and costs at one call, as text: its mathematics, which parameters
        are run-time values, how many pairs, tiles, operations and bytes, and the loops of a kernel;
        then the score terms, their derivatives, and which tables have gradients.

        Args:
            q_len: Rows.
            kv_len: Keys; `q_len` if not given.
            q_offset: Position of the first row; `kv_len - q_len` if not given.
            heads: Number of query heads.
            kv_heads: Number of key/value heads; `heads` if not given.
            layers: Number of layers; those that differ are told apart, as heads are.
            batch: Index in the batch.
            block_q: Rows of a tile.
            block_k: Keys of a tile.
            dtype: Of the tensors, for the count of bytes.
            head_dim: Of query and key.
            value_head_dim: Of value; `head_dim` if not given.
            **values: Run-time numbers and tables by name.

        Raises:
            ArgumentError: An argument is missing, unknown or does not fit.
            ConfigError: A size cannot be.
            UnsupportedError: The pattern has a term that is not lowered yet.
        """
        from patterncc.explain import explain
        from patterncc.explain_text import format_explanation

        call = self._call(q_len, kv_len, q_offset, heads, kv_heads, layers, batch, values)
        problem = Problem(dtype, head_dim, value_head_dim or head_dim)
        text = format_explanation(explain(call, problem, block_q=block_q, block_k=block_k))
        return text if self.terms.plain else f"{text}\n{format_terms(self.terms)}"

    def plot(
        self,
        path: str | os.PathLike[str],
        /,
        q_len: int = 256,
        kv_len: int | None = None,
        block_q: int | None = None,
        block_k: int | None = None,
        head: int = 0,
        layer: int = 0,
        q_offset: int | None = None,
        *,
        heads: int = 1,
        kv_heads: int | None = None,
        layers: int | None = None,
        batch: int = 0,
        **values: Any,
    ) -> None:
        """Draws the mask of one head into a file, its tiles coloured full, partial and empty.

        Args:
            path: Where to; ends in .png, .svg or .pdf.
            q_len: Rows.
            kv_len: Keys; `q_len` if not given.
            block_q: Rows of a tile; chosen from the length if not given.
            block_k: Keys of a tile; likewise.
            head: Query head.
            layer: Layer number.
            q_offset: Position of the first row; `kv_len - q_len` if not given.
            heads: Number of query heads.
            kv_heads: Number of key/value heads; `heads` if not given.
            layers: Number of layers; `layer + 1` if not given.
            batch: Index in the batch.
            **values: Run-time numbers and tables by name.

        Raises:
            ArgumentError: An argument is missing, unknown or does not fit.
            ConfigError: A size cannot be, the path says no format, or matplotlib is not installed.
            UnsupportedError: The pattern has a term that is not lowered yet.
            OSError: The file cannot be written.
        """
        from patterncc import picture, plot

        layers = layer + 1 if layers is None else layers
        call = self._call(q_len, kv_len, q_offset, heads, kv_heads, layers, batch, values)
        taken = picture.take(call, layer=layer, head=head, block_q=block_q, block_k=block_k)
        plot.save([taken], Path(path))

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
        """The text of one stage of compilation, one of `patterncc.compilation.STAGES`.

        Args:
            stage: Name of the stage.
            after: For `ir`: the pass after which to look, one of
                `patterncc.compilation.pass_names()`; the last if not given.
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
        from patterncc.compilation import Compilation

        compilation = Compilation(
            self.pattern,
            problem=Problem(dtype, head_dim, value_head_dim or head_dim, group, self.terms),
            config=config,
            target=target,
            sizes=sizes,
        )
        return compilation.text(stage, after)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attention) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[str, str | None]:
        return self.pattern.text, None if self._score is None else self._score.text

    def __repr__(self) -> str:
        score, _, sink = ("", "", "") if self._score is None else self._score.text.partition("\n")
        terms = f", score={score!r}" * bool(score) + f", sink={sink!r}" * bool(sink)
        return f"patterncc.compile({self.pattern.text!r}{terms})"

    def __reduce__(self) -> tuple[object, ...]:
        text, score = self._identity
        return _restore, (text, self._pattern.name, score, self._autotune)


def _restore(text: str, name: str, score: str | None = None, autotune: bool = False) -> Attention:
    """An `Attention` from what identifies it, the name that its text was read under, and whether
    it tunes."""
    terms = PLAIN if score is None else terms_of(score)
    return Attention(replace(load(text), name=name), terms, autotune=autotune)
