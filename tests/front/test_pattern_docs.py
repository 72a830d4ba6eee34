"""docs/patterns.md is what its generator makes of the library, pictures and numbers too."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from patterncc.dsl import library

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 600_000  # of all pictures


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "generate_patterns", ROOT / "docs" / "generate_patterns.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = generator()
NUMBERS = json.loads(GENERATOR.NUMBERS.read_text(encoding="utf-8"))


def test_every_pattern_has_its_place() -> None:
    placed = [name for names in GENERATOR.FAMILIES.values() for name in names.split()]
    assert sorted(placed) == list(library.names()) == sorted(NUMBERS)
    assert GENERATOR.DRAWINGS.keys() <= set(library.names())


def test_the_page_is_up_to_date() -> None:
    text = GENERATOR.PAGE.read_text(encoding="utf-8")
    assert GENERATOR.page(text, NUMBERS) == text, "run python docs/generate_patterns.py"


def test_pictures_are_those_of_patterns_and_small() -> None:
    files = {path.stem: path.stat().st_size for path in GENERATOR.PICTURES.glob("*.png")}
    assert sorted(files) == list(library.names())
    assert sum(files.values()) < MOST_BYTES


@pytest.mark.parametrize("name", library.names())
def test_the_picture_is_up_to_date(name: str) -> None:
    kept = GENERATOR.read_png((GENERATOR.PICTURES / f"{name}.png").read_bytes())
    assert np.array_equal(kept, GENERATOR.draw(name)), "run generate_patterns.py --draw"


@pytest.mark.parametrize("name", GENERATOR.LARGE)
def test_the_larger_picture_is_up_to_date(name: str) -> None:
    kept = GENERATOR.read_png(GENERATOR.large_picture(name).read_bytes())
    assert np.array_equal(kept, GENERATOR.draw(name, GENERATOR.LARGE[name]))


@pytest.mark.parametrize("name", ["streaming", "document", "duo", "ladder", "sinks", "prefix"])
def test_counts_are_up_to_date(name: str) -> None:
    assert GENERATOR.count(name) == NUMBERS[name], "run generate_patterns.py --count"
