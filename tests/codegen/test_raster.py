"""Which rasters a mask is taken to be about, and when patches of one are chosen."""

from __future__ import annotations

import pytest

from patterncc import programs, signatures
from patterncc.codegen.choice import candidates, lower_passes, tiling_names
from patterncc.codegen.lower import specialise
from patterncc.codegen.patch_choice import no_patches, patch_choices
from patterncc.codegen.raster import rasters
from patterncc.dsl.loader import load
from patterncc.dsl.printer import expression_text

WINDOWS = "(q // 48 - k // 48) <= 3 and (k // 48 - q // 48) <= 3 and abs(q % 48 - k % 48) <= 3"


def sizes_of(text: str) -> list[tuple[int, ...]]:
    return [raster.sizes for raster in rasters(specialise(load(text).body, {}))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("neighborhood", [(64,)]),
        ("neighborhood(width = 40, stride = 4)", [(40,)]),
        ("swin", [(56,)]),
        ("neighborhood_3d", [(40,), (30, 40)]),
        (WINDOWS, [(48,)]),
        # Quotients of quotients come as one; dilation leaves remainders within an axis.
        ("q // 10 // 2 == k // 10 // 2 and q % 10 == k % 10", [(10,)]),
        ("neighborhood(dilation = 2)", [(64,)]),
    ],
)
def test_sizes_come_from_what_a_mask_divides_by(text: str, expected: list[tuple[int, ...]]) -> None:
    assert [sizes for sizes in sizes_of(text) if sizes in expected] == expected


@pytest.mark.parametrize(
    "text",
    [
        "causal",
        "window(100)",
        "dilated(16, 4)",
        "q // 64 == k // 64",  # one axis says something, the other nothing
        "q // 8 == k // 8 or q % 8 == k % 8",  # no product
        "pattern p(keep: bool[*]): keep[k] and q // 8 == k // 8 and q % 8 == k % 8",
    ],
)
def test_other_masks_are_about_none(text: str) -> None:
    assert sizes_of(text) == []


def test_axes_in_their_own_coordinates() -> None:
    (raster,) = rasters(specialise(load("swin").body, {}))
    rows, columns = map(expression_text, raster.axes)
    assert rows.startswith("if layer % 2 == 1 and ")
    assert "(q - 3) // 7 == (k - 3) // 7" in rows
    assert rows.endswith("else q // 7 == k // 7")
    assert columns == rows
    assert not raster.others


def test_terms_about_several_axes_are_left_to_the_mask() -> None:
    (raster,) = rasters(specialise(load(f"causal and {WINDOWS}").body, {}))
    assert list(map(expression_text, raster.others)) == ["k <= q"]


def test_patches_are_chosen_by_counted_work() -> None:
    for text in ("neighborhood", "swin", "neighborhood_3d"):
        ways = candidates(load(text), 64, 64, within=True, patches=True)
        dense, patches = ways
        assert tiling_names(dense.passes) == "dense"
        assert tiling_names(patches.passes).startswith("patches of ")
        assert patches.cost < 0.75 * dense.cost
        assert lower_passes(load(text), 64, 64, within=True, transposed=False, patches=True) == (
            patches.passes
        )
    # Rows of the image that are wider than what is computed in vain anyway.
    wide = candidates(load("q // 4 == k // 4 and abs(q % 4 - k % 4) <= 2"), 64, 64, within=True)
    assert [tiling_names(way.passes) for way in wide] == ["dense"]


def test_windows_of_swin_are_patches() -> None:
    """Seven by seven rows of a window see seven by seven keys: one tile."""
    (program,) = lower_passes(load("swin"), 64, 64, within=True, transposed=False, patches=True)
    assert program.patches is not None
    assert program.patches.query == (7, 7)
    assert program.patches.passing_keys == (8, 8)


def test_shapes_are_counted_for_powers_of_two_alone() -> None:
    body = specialise(load("swin").body, {})
    env = {"kv_len": 3136, "q_len": 3136, "q_offset": 0, "layer": 0, "height": 56}
    assert list(patch_choices(body, 64, 64, env))
    assert not no_patches(64, 64, within=True)
    assert "48 x 64" in no_patches(48, 64, within=True)


def test_why_a_raster_is_not_visited_in_patches() -> None:
    image = load("neighborhood")
    for block_q, within, words in (
        (64, False, "rows that end within the keys"),
        (48, True, "no powers of two"),
    ):
        *others, refused = candidates(image, block_q, 64, within=within, patches=True)
        assert refused.reason.endswith(words)
        assert refused.cost == float("inf")
        assert 0 < min(way.cost for way in others) < float("inf")
    for text in ("causal", "q // 64 == k // 64"):
        assert all(not way.reason for way in candidates(load(text), 64, 64, patches=True))


def test_which_calls_take_patches() -> None:
    """Rows within the keys, tilings left open, kernels that visit patches."""
    pattern = load("neighborhood")

    def in_patches(**options: object) -> bool:
        settings = {"within": True, "patches": True, "transposed": False, **options}
        (program,) = lower_passes(pattern, 64, 64, **settings)  # type: ignore[arg-type]
        return program.patches is not None

    assert in_patches()
    assert in_patches(transposed=True)
    assert not in_patches(within=False)
    assert not in_patches(patches=False)
    assert not in_patches(tiling="dense")


def test_programs_of_executors() -> None:
    """Kernels on GPUs take patches, forward and backward; the CPU executor does not."""
    structure = signatures.signature_of("neighborhood").structure
    text = programs.counted_text(structure, (), (64, 13))
    for transposed in (False, True):
        (program,) = programs.passes(text, 64, 64, (), True, transposed, patches=True)
        assert program.patches is not None
        assert (program.transposed is not None) == transposed
        (other,) = programs.passes(text, 64, 64, (), True, transposed)
        assert other.patches is None


def test_numbers_of_a_call_decide_about_rasters_alone() -> None:
    """How far a window of an image reaches is a number of the call; kernels do not differ by it."""
    image = signatures.signature_of("neighborhood").structure
    near, far = (programs.counted_text(image, (), (64, kernel)) for kernel in (13, 63))
    (patches,) = programs.passes(near, 64, 64, (), True, patches=True)
    (lines,) = programs.passes(far, 64, 64, (), True, patches=True)
    assert patches.patches is not None
    assert lines.patches is None  # nearly all columns: consecutive tiles compute less
    assert patches.structure == lines.structure == image
    text = signatures.signature_of("pattern p(wide = 256): abs(q - k) < wide").structure
    assert programs.counted_text(text, (), (256,)) == text
