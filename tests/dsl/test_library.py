"""Every library pattern against a reference written from its published formula, pair by pair."""

import time

import pytest

from patterncc.dsl import diagnose, library, load
from patterncc.dsl.errors import PatternError
from patterncc.dsl.evaluate import allows
from patterncc.dsl.formatter import format_source
from tests.dsl.cases import Case, basic_cases, system_cases
from tests.dsl.references import REFERENCES as BASIC
from tests.dsl.references_systems import SYSTEMS

CASES = [*basic_cases(), *system_cases()]
REFERENCES = {**BASIC, **SYSTEMS}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_its_formula(case: Case) -> None:
    pattern = load(case.name, **case.values)
    reference = REFERENCES[case.name]
    for q in range(case.size):
        for k in range(case.size):
            expected = reference(q, k, **case.values, **case.env, **case.tables)
            assert allows(pattern, q, k, case.env, case.tables) == expected, (q, k)


def test_every_pattern_has_a_reference() -> None:
    assert {case.name for case in CASES} == set(REFERENCES) == set(library.names())


def test_streaming_is_streaming_llm() -> None:
    pattern = load("streaming", sinks=4, window=9)
    for q in range(40):
        for k in range(40):
            assert allows(pattern, q, k) == (k <= q and (k < 4 or k >= q - 8))


def test_neighborhoods_have_exactly_kernel_keys() -> None:
    pattern = load("neighborhood_1d", kernel=5, stride=2, dilation=3)
    for q in range(24):
        assert sum(allows(pattern, q, k, {"kv_len": 24}) for k in range(24)) == 5


def test_a_union_of_longnet_branches() -> None:
    pattern = load("longnet(8, 1) or longnet(16, 2)")
    env = {"head": 3, "heads": 4}
    for q in range(40):
        for k in range(40):
            branches = [REFERENCES["longnet"](q, k, w, r, **env) for w, r in ((8, 1), (16, 2))]
            assert allows(pattern, q, k, env) == any(branches)


def test_names_and_summaries() -> None:
    assert list(library.names()) == sorted(library.names())
    for name in library.names():
        assert library.summary(name).endswith(".")
        assert len(library.summary(name)) <= 100
        assert library.origin(name).endswith("."), "the last comment line is `# Source: ...`"
        assert library.notes(name) == "" or library.notes(name)[-1] in ".?`"
    for function in (library.source, library.summary, library.notes, library.origin):
        with pytest.raises(KeyError):
            function("casual")


@pytest.mark.parametrize("name", library.names())
def test_files_are_sound(name: str) -> None:
    source = library.source(name)
    assert format_source(source.text) == source.text
    checked = diagnose(name)
    assert checked.errors == checked.warnings == ()
    assert checked.pattern is not None
    assert checked.pattern.name == name


@pytest.mark.parametrize("name", library.names())
def test_loading_is_fast(name: str) -> None:
    load(name)  # builds the parser
    times = []
    for _ in range(5):
        start = time.perf_counter()
        load(name)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.030


def test_a_table_must_be_a_parameter() -> None:
    with pytest.raises(PatternError, match=r"is a parameter of type `segments`"):
        load("document(doc)")
