"""docs/language.md: every text in it is a pattern, and its lists are those of the code."""

import re
from pathlib import Path

import pytest

from patterncc.dsl import diagnose, library, limits
from patterncc.dsl.declare import CALL_ARGUMENTS, FUNCTIONS, TILE_SYMBOLS
from patterncc.dsl.mask import COORDINATES, SIZES
from patterncc.dsl.parser import parse
from patterncc.dsl.syntax import Definition

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "language.md"
TEXT = DOCS.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", [block for _, block in BLOCKS])
def test_every_block_is_a_pattern(block: str) -> None:
    # A fixed or run-time parameter without a default is open in some of them.
    checked = diagnose(block, values={"n": 8} if "every(n" in block else None)
    assert checked.errors == checked.warnings == ()


def test_all_blocks_are_of_the_language() -> None:
    assert {language for language, _ in BLOCKS} == {"pat"}


def test_patterns_of_the_library_are_listed_with_their_parameters() -> None:
    section = TEXT.partition("## The library")[2]
    listed = dict(re.findall(r"^\| `(\w+)\((.*?)\)` \|", section, flags=re.MULTILINE))
    assert {"causal", "window", "streaming", "document"} < listed.keys() <= set(library.names())
    for name, parameters in listed.items():
        definition: Definition = parse(library.source(name)).program.definitions[-1]
        declared = [parameter.name.text for parameter in definition.parameters]
        assert sorted(filter(None, parameters.split(", "))) == sorted(declared), name


def test_names_and_limits_are_mentioned() -> None:
    for name in (*COORDINATES, *SIZES, *FUNCTIONS):
        assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", TEXT), name
    for name in CALL_ARGUMENTS | TILE_SYMBOLS:
        assert f"`{name}`" in TEXT
    for limit in (limits.MAX_TEXT, limits.MAX_TOKENS, limits.MAX_DEPTH, limits.MAX_NODES):
        assert f"{limit:,}" in TEXT
    assert limits.MAX_CONSTANT == 2**30
