"""Which emitter writes the kernels of a pattern where nothing was tuned, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import (
    Emitter,
    KernelConfig,
    check_config,
    default_config,
    visits_patches,
)
from patterncc.codegen.gpu.emitter_choice import EmitterChoice, choose_emitter, emitter_of
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.forward_source import emit_forward
from patterncc.codegen.gpu.gluon.forward_source import emit_gluon_forward
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.ir import Passes
from patterncc.codegen.problem import Problem
from patterncc.compilation import Compilation
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.score.terms import ScoreTerms, load_terms

D128 = Problem("bfloat16", 128, 128)
D64 = Problem("float16", 64, 64)
CAPPED = load_terms("softcap(score, 50)")
SINK = load_terms(None, "sinks[head]")
ALIBI = load_terms("score + alibi(slopes)")
ALL = load_terms("softcap(score, 50) + alibi(slopes)", "sinks[head]")
SIZES = {"heads": 16, "kv_heads": 16}


def _choice(text: str, problem: Problem = D128, target: str = "cuda:90") -> EmitterChoice:
    pattern = load(text)

    def lowered(block_q: int, block_k: int, emitter: Emitter) -> Passes:
        return lower_passes(
            pattern,
            block_q,
            block_k,
            sizes=SIZES,
            within=True,
            transposed=False,
            patches=visits_patches(emitter),
        )

    return choose_emitter(pattern, problem, target, lowered, SIZES)


# The shape that was the fastest on an H200, or within 4% of it (docs/gluon.md); None: the Triton
# kernel.
MEASURED = (
    ("causal", (128, 128), (64, 128)),
    ("full", (128, 128), (64, 128)),
    ("window(4096)", (128, 128), (64, 128)),
    ("window(1024)", (64, 64), (64, 128)),
    ("window(256)", (64, 64), None),
    ("streaming(64, 4096)", (128, 128), (64, 128)),
    ("dilated(512, 8)", (64, 64), None),
    ("window(512) or dilated(512, 8)", (64, 64), None),
    ("ladder(4, 1024, 128, 8)", (128, 128), (64, 128)),
    ("local_strided(64, 16, 8)", (64, 64), None),
    ("causal and chunked(256)", (64, 64), None),
    ("if head < 8 then causal else window(512)", (128, 128), (64, 128)),
    ("pattern p(doc: segments): causal and doc[q] == doc[k]", (64, 64), (64, 128)),
)


@pytest.mark.parametrize(("text", "at_128", "at_64"), MEASURED, ids=[row[0] for row in MEASURED])
def test_what_was_fastest_is_chosen(
    text: str, at_128: tuple[int, int] | None, at_64: tuple[int, int] | None
) -> None:
    for problem, shape in ((D128, at_128), (D64, at_64)):
        choice = _choice(text, problem)
        assert choice.name == ("triton" if shape is None else "gluon")
        if choice.config is None:
            assert "take longer" in choice.reason
        else:
            assert (choice.config.block_q, choice.config.block_k) == shape
            assert "x".join(map(str, shape or ())) in choice.reason
            check_config(choice.config, problem, "cuda:90")


# The same with score terms, or within 7% of it; docs/gluon.md says where it is not the fastest.
WITH_TERMS = (
    ("causal", SINK, (128, 128), (64, 128)),
    ("window(4096)", SINK, (128, 128), (64, 128)),
    ("window(1024)", SINK, (64, 64), (64, 128)),
    ("causal", ALIBI, (128, 128), (64, 128)),
    ("window(4096)", ALIBI, (128, 128), (64, 128)),
    ("window(1024)", ALIBI, (64, 64), (64, 128)),
    ("causal", CAPPED, (64, 64), (64, 128)),
    ("window(4096)", CAPPED, (64, 64), (64, 128)),
    ("window(1024)", CAPPED, (64, 64), (64, 128)),
    ("causal", ALL, (64, 64), (64, 128)),
    ("window(4096)", ALL, (64, 64), (64, 128)),
    ("window(1024)", ALL, (64, 64), (64, 128)),
)


@pytest.mark.parametrize(("text", "terms", "at_128", "at_64"), WITH_TERMS)
def test_score_terms_weigh_in_the_choice(
    text: str,
    terms: ScoreTerms,
    at_128: tuple[int, int],
    at_64: tuple[int, int],
) -> None:
    for problem, shape in ((D128, at_128), (D64, at_64)):
        config = _choice(text, replace(problem, terms=terms)).config
        assert (config and (config.block_q, config.block_k)) == shape


@pytest.mark.parametrize(
    ("text", "problem", "target", "words"),
    [
        ("causal", D128, "cuda:100", "for cuda:90 alone"),
        ("causal", D128, "hip:gfx942", "for cuda:90 alone"),
        ("causal", replace(D128, dtype="float32"), "cuda:90", "16-bit numbers"),
        ("causal", replace(D128, head_dim=96), "cuda:90", "not 96 and 128"),
        (
            "pattern p(keep: bool[*, *]): causal and keep[q // 64, k // 64]",
            D128,
            "cuda:90",
            "tables decide",
        ),
        ("local_strided(16, 4, 3)", D128, "cuda:90", "no power of two"),
        ("ladder(4, 64, 100, 7)", D64, "cuda:90", "no power of two"),
        ("longformer", D128, "cuda:90", "21 runs"),
        ("longformer", D64, "cuda:90", "21 runs"),
        ("tri_shape", D128, "cuda:90", "18 runs"),
        ("local_stride_both", D128, "cuda:90", "26 runs"),
        (
            "causal",
            replace(D128, terms=load_terms("score + relative_bias(bias, 128)")),
            "cuda:90",
            "looks nothing up for each row or key",
        ),
        ("causal", replace(D128, terms=load_terms("sigmoid(score)")), "cuda:90", "no sigmoid"),
    ],
)
def test_reasons_for_triton(text: str, problem: Problem, target: str, words: str) -> None:
    choice = _choice(text, problem, target)
    assert choice.config is None
    assert choice.name == "triton"
    assert words in choice.reason


@pytest.mark.parametrize("text", ["full", "causal", "window(512)", "local_strided(64, 16, 8)"])
def test_full_tiles_keep_the_peak_where_they_can(text: str) -> None:
    choice = _choice(text)
    assert choice.config is not None
    assert choice.config.peaks == "kept"
    assert "full ones keep the peak" in choice.reason
    check_config(choice.config, D128, "cuda:90")
    for problem in (replace(D128, dtype="float16"), replace(D128, terms=ALIBI)):
        choice = _choice(text, problem)
        assert choice.config is not None
        assert choice.config.peaks == "each"
        assert "peak" not in choice.reason
    sink = _choice(text, replace(D128, terms=SINK)).config
    assert sink is not None
    assert sink.peaks == "kept"


@pytest.mark.parametrize(
    "text", ["tree", "sinklora", "s2_wrapped", "deepspeed_fixed", "minference_dilated_window"]
)
def test_masks_beyond_limits_have_tiles_of_one_warpgroup(text: str) -> None:
    """128x128 tiles, which would be taken for long rows of full tiles, have not the registers."""
    for problem, shape in ((D128, (64, 64)), (D64, (64, 128))):
        config = _choice(text, problem).config
        assert config is not None
        assert (config.block_q, config.block_k) == shape


def test_rows_of_few_full_tiles_find_each_peak() -> None:
    """The look at the rows at the end costs more than three full tiles save."""
    config = _choice("window(128)").config
    assert config is not None
    assert config.peaks == "each"


def test_short_calls_stay_with_triton() -> None:
    choice = _choice("causal")
    assert choice.for_rows(128) == choice
    assert choice.for_rows(127).config is None
    assert "127 rows" in choice.for_rows(127).reason


def test_an_emitter_for_each_config() -> None:
    config = _choice("causal").config
    assert config is not None
    assert emitter_of(config) is emit_gluon_forward
    assert emitter_of(default_config(D128, "cuda:90")) is emit_forward


# ------------------------------------------------------------------------------------ plans


def _layouts(stride: int = 128) -> list[Layout]:
    sizes = (1, 2, 300, 128)
    strides = (2 * 300 * stride, 300 * stride, stride, 1)
    packed = (2 * 300 * 128, 300 * 128, 128, 1)
    named = ((name, strides) for name in ("query", "key", "value"))
    return [Layout(n, 0, sizes, s, 2) for n, s in (*named, ("out", packed))]


def _planner(config: KernelConfig | None = None, special: KernelConfig | None = None) -> Planner:
    def lowered(block_q: int, block_k: int) -> tuple[Passes]:
        return (lower_passes(load("causal"), block_q, block_k, within=True, transposed=False),)

    return Planner(lowered, config, special=lambda call: special)


ENV = MappingProxyType({"q_offset": 0})


def test_plans_take_what_is_special() -> None:
    special = _choice("causal").config
    (launch,) = _planner(special=special).plan(D128, "cuda:90", _layouts(), ENV, 0.1)
    assert launch.source.config.emitter == "gluon"
    assert launch.source.config.order == "reverse"  # adapted to the program, as defaults are
    assert launch.grid == (3, 2, 1)
    assert [each.tensor for each in launch.described] == ["query", "key", "value", "out"]
    (plain,) = _planner().plan(D128, "cuda:90", _layouts(), ENV, 0.1)
    assert plain.source.config.emitter == "triton"


def test_layouts_that_no_descriptor_describes_go_by_triton() -> None:
    special = _choice("causal").config
    (launch,) = _planner(special=special).plan(D128, "cuda:90", _layouts(129), ENV, 0.1)
    assert launch.source.config.emitter == "triton"
    assert launch.source.config.load == "pointer"


def test_a_config_that_is_given_is_never_replaced() -> None:
    config = _choice("causal").config
    with pytest.raises(ConfigError, match="impossible"):
        _planner(config).plan(D128, "cuda:90", _layouts(129), ENV, 0.1)
    with pytest.raises(ConfigError, match="cuda:90 alone"):
        _planner(config).plan(D128, "cuda:100", _layouts(), ENV, 0.1)


def _on_an_image(
    config: KernelConfig | None = None, special: KernelConfig | None = None
) -> Planner:
    def lowered(block_q: int, block_k: int) -> list[Passes]:
        return [
            lower_passes(
                load(IMAGE),
                block_q,
                block_k,
                within=within,
                transposed=False,
                patches=patches,
            )
            for within, patches in ((True, True), (True, False), (False, False))
        ]

    return Planner(lowered, config, special=lambda call: special)


IMAGE = "neighborhood(10, 30, 3)"
IMAGE_ENV = MappingProxyType({"q_offset": 0, "height": 10, "kernel": 3})


def test_gluon_visits_consecutive_tiles_where_triton_visits_patches() -> None:
    (launch,) = _on_an_image().plan(D128, "cuda:90", _layouts(), IMAGE_ENV, 0.1)
    assert "patches" in launch.source.text
    gluon = _choice("causal").config
    for options in ({"config": gluon}, {"special": gluon}):
        (launch,) = _on_an_image(**options).plan(D128, "cuda:90", _layouts(), IMAGE_ENV, 0.1)
        assert launch.source.config.emitter == "gluon"
        assert "patches" not in launch.source.text
    beyond = {**IMAGE_ENV, "q_offset": 30}
    (launch,) = _on_an_image().plan(D128, "cuda:90", _layouts(), beyond, 0.1)
    assert "patches" not in launch.source.text


@pytest.mark.parametrize("problem", [D128, D64])
def test_patches_are_weighed_against_gluon(problem: Problem) -> None:
    """A window of an image of which consecutive tiles see five times as much, and one of which they
    see little more."""
    choice = _choice("neighborhood", problem)
    assert choice.config is None
    assert ("take longer than patches of a raster" in choice.reason) == (problem == D128)
    assert ("23 runs" in choice.reason) == (problem == D64)
    assert _choice("neighborhood(64, 64, 63)", problem).name == "gluon"


# ------------------------------------------------------------------------------------ compilations


def test_compilations_say_and_show_it() -> None:
    compilation = Compilation("causal")
    assert compilation.emitter.name == "gluon"
    assert compilation.config.emitter == "gluon"
    assert "# emitter: gluon" in compilation.text("triton")
    assert "ttir" not in compilation.stages()
    other = Compilation("causal", target="cuda:80")
    assert other.config.emitter == "triton"
    assert "ttir" in other.stages()
