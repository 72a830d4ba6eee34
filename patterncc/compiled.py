"""`Attention`: a compiled pattern as a value, and its call on tensors.

Loads no torch until something needs it (hence the imports inside methods), so that a pattern can be
read, printed and emitted without.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, overload

from patterncc.dsl import load
from patterncc.dsl.score.terms import PLAIN, ScoreTerms, terms_of
from patterncc.mask_methods import Masks
from patterncc.score_call import ScoreSignature
from patterncc.settings import isolates
from patterncc.signatures import Signature
from patterncc.tune_method import Tunable, refuse_terms
from patterncc.view_methods import Views

if TYPE_CHECKING:
    from torch import Tensor

    from patterncc.dsl.pattern import Pattern
    from patterncc.recent import RecentCalls


class Attention(Masks, Views, Tunable):
    """A compiled pattern: call it on tensors, or ask what it does.

    A value: equal and hashed by its canonical texts and by `isolate`, and it pickles as those.

    Calls are whole graphs for `torch.compile`. Where layers are compiled one by one, each with a
    pattern of its own, torch counts every pattern as a recompilation of their shared code and stops
    at `torch._dynamo.config.recompile_limit`: compile the model as a whole, or raise the limit.
    """

    __slots__ = (
        "_autotune",
        "_deterministic",
        "_isolate",
        "_pattern",
        "_recent",
        "_score",
        "_signature",
        "_terms",
    )

    def __init__(
        self,
        pattern: Pattern,
        terms: ScoreTerms = PLAIN,
        *,
        autotune: bool = False,
        deterministic: bool = True,
        isolate: bool | None = None,
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
        self._recent: RecentCalls | None = None
        self._deterministic = deterministic
        self._isolate = isolates(isolate)
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
    def isolate(self) -> bool | None:
        """Whether numbers that are not finite reach only rows and keys that see them on GPUs, too;
        None: rows, where that takes no launch."""
        return self._isolate

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
        import torch

        if self._autotune:
            where = {"layer": layer, "layers": layers, "q_offset": q_offset}
            self._settle((query, key, value), values, **where)
        recent = None
        if not torch.compiler.is_compiling():
            recent = self._recent
            if recent is not None:
                numbers = (scale, q_offset, layer, layers)
                known = recent.run(query, key, value, numbers, values)
                if known is not None:
                    return known if return_lse else known[0]
        from patterncc import ops

        if recent is None and not torch.compiler.is_compiling():
            from patterncc.recent import RecentCalls

            recent = self._recent = RecentCalls()
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
            recent,
            self._deterministic,
            self._isolate,
        )
        return results if return_lse else results[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attention) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[str, str | None, bool | None]:
        score = None if self._score is None else self._score.text
        return self.pattern.text, score, self._isolate

    def __repr__(self) -> str:
        score, _, sink = ("", "", "") if self._score is None else self._score.text.partition("\n")
        terms = f", score={score!r}" * bool(score) + f", sink={sink!r}" * bool(sink)
        isolate = "" if self._isolate is None else f", isolate={self._isolate}"
        return f"patterncc.compile({self.pattern.text!r}{terms}{isolate})"

    def __reduce__(self) -> tuple[object, ...]:
        text, score, isolate = self._identity
        options = (self._autotune, self._deterministic, isolate)
        return _restore, (text, self._pattern.name, score, *options)


def _restore(
    text: str,
    name: str,
    score: str | None = None,
    autotune: bool = False,
    deterministic: bool = True,
    isolate: bool | None = None,
) -> Attention:
    """An `Attention` from what identifies it, the name that its text was read under, and its
    options."""
    terms = PLAIN if score is None else terms_of(score)
    pattern = replace(load(text), name=name)
    return Attention(
        pattern, terms, autotune=autotune, deterministic=deterministic, isolate=isolate
    )
