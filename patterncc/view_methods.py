"""What a compiled pattern shows of itself to people: an explanation, pictures, its stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from patterncc.codegen.problem import Problem
from patterncc.fact_methods import Facts
from patterncc.score_text import format_terms

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.problem import DType
    from patterncc.dsl.score.terms import ScoreTerms


class Views(Facts):
    """The part of `Attention` that prints and draws."""

    __slots__ = ()

    if TYPE_CHECKING:
        _deterministic: bool
        _isolate: bool | None
        _terms: ScoreTerms

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
        dims = (head_dim, value_head_dim or head_dim)
        problem = Problem(dtype, *dims, terms=self._terms, isolates=self._isolate)
        explanation = explain(
            call,
            problem,
            block_q=block_q,
            block_k=block_k,
            deterministic=self._deterministic,
        )
        text = format_explanation(explanation)
        return text if self._terms.plain else f"{text}\n{format_terms(self._terms)}"

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

        dims = (head_dim, value_head_dim or head_dim)
        compilation = Compilation(
            self._pattern,
            problem=Problem(dtype, *dims, group, self._terms, self._isolate),
            config=config,
            target=target,
            sizes=sizes,
        )
        return compilation.text(stage, after)
