"""What the Gluon emitter writes, and what it refuses, without a compiler."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

import pytest

from patterncc.codegen.gpu.config import KernelConfig, check_config
from patterncc.codegen.gpu.gluon.dialect import PRELUDE, gluon_text, kept_where
from patterncc.codegen.gpu.gluon.forward_source import emit_gluon_forward
from patterncc.codegen.gpu.gluon.reasons import reason_against
from patterncc.codegen.gpu.gluon.warps import warps_of
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.ir import DENSE
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import Problem
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.score.terms import PLAIN, load_terms

WIDE = Problem("bfloat16", 128, 128, isolates=False)
HALF = Problem("float16", 128, 128, isolates=False)
CONFIG = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")
KEPT = replace(CONFIG, peaks="kept")


def _source(text: str, config: KernelConfig = CONFIG, problem: Problem = WIDE) -> KernelSource:
    program = lower(load(text), config.block_q, config.block_k, within=True)
    return emit_gluon_forward(program, problem, config)


def _functions(source: KernelSource) -> dict[str, ast.FunctionDef]:
    nodes = ast.walk(ast.parse(source.text))
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}


def test_three_functions() -> None:
    """The warp that loads gets the descriptors of what it loads, the others that of the output, and
    those of keys and values where they may have to compute once more."""
    functions = _functions(_source("causal"))
    assert {"load_tiles", "attend", "forward"} <= set(functions)
    loads = [argument.arg for argument in functions["load_tiles"].args.args]
    assert {"query_desc_0", "key_desc_0", "value_desc_0"} <= set(loads)
    assert "out_desc_0" not in loads
    for problem, described in (
        (WIDE, ["key_desc_0", "value_desc_0", "out_desc_0"]),
        (HALF, ["out_desc_0"]),
    ):
        functions = _functions(_source("causal", KEPT, problem))
        attends = [argument.arg for argument in functions["attend"].args.args]
        assert [name for name in attends if "_desc_" in name] == described


@pytest.mark.parametrize("config", [CONFIG, KEPT])
def test_what_takes_care_stands_behind_the_warps(config: KernelConfig) -> None:
    """Two functions, called where the kernel's warps have met again, and there alone; they count
    from what no compiler knows."""
    careful = _source("causal", config, replace(WIDE, isolates=None))
    functions = _functions(careful)
    assert {"find_left_out", "compute_again"} <= set(functions)
    calls = [line for line in careful.text.splitlines() if "phase = compute_again(" in line]
    assert len(calls) == 1 and calls[0].strip() in ast.unparse(functions["forward"])
    _, apart, behind = careful.text.partition("    run_apart(\n")
    assert apart and "compute_again(" in behind
    for name in ("find_left_out", "compute_again"):
        places = re.findall(r"tl\.program_id\(\d\)(.{7})", ast.unparse(functions[name]))
        assert places and set(places) == {" + zero"}
    attends = [argument.arg for argument in functions["attend"].args.args]
    assert [name for name in attends if "_desc_" in name] == ["out_desc_0"]
    assert careful.text == _source("causal", config, replace(WIDE, isolates=True)).text


def test_both_sides_visit_the_same_tiles() -> None:
    """Bounds and loops stand twice in the text, and must not come apart."""
    for text in (
        "causal",
        "streaming(64, 1024)",
        "ladder(4, 64, 100, 7)",
        "local_strided(16, 4, 3)",
    ):
        for problem in (WIDE, HALF):
            functions = _functions(_source(text, KEPT, problem))
            load, attend = (
                ast.unparse(functions[name]).partition("if again > 0:")
                for name in ("load_tiles", "attend")
            )
            loaded, attended = _visits(load[0]), _visits(_one_loop(attend[0]))
            # A warpgroup asks for the place of masked tiles alone.
            assert [line for line in loaded if line in attended] == attended
            if attend[1]:
                counts = re.findall(r"for step in range\(.*, (\w+)\)", "\n".join(loaded))
                head, start = _visits(attend[2])
                assert head == f"for step in range(0, {' + '.join(counts)}):"
                own = r"step - (count_\d+|\([\w +]+\))"
                every = re.sub(own, "step", re.sub(rf"\({own}\)", "step", _tile(start)))
                tiles = [_tile(line) for line in loaded if line.startswith("k_first")]
                # The very first tile stands before the loops.
                assert len(tiles) == 1 + len(counts)
                assert all(tile in every for tile in tiles[1:])


def _tile(line: str) -> str:
    """The tile that a line takes the first key of."""
    (assignment,) = ast.parse(line).body
    assert isinstance(assignment, ast.Assign)
    assert isinstance(assignment.value, ast.BinOp)
    return ast.unparse(assignment.value.left)


def _visits(text: str) -> list[str]:
    """The lines about which tiles are visited."""
    wanted = r"(for step in |k_first = |count_\d+ = |(first|end|shift)_\w+ = )"
    return [line.strip() for line in text.splitlines() if re.match(wanted, line.strip())]


def _one_loop(text: str) -> str:
    """Loops over the first full tile and over the others as one."""
    first = r"for step in range\((.*), tl\.minimum\((count_\d+), 1\)\):"
    for begin, count in re.findall(first, text):
        head = f"for step in range({begin}, tl.minimum({count}, 1)):"
        text = text.replace(head, f"for step in range({begin}, {count}):")
        text = text.replace(f"for step in range(1, {count}):", "")
    return text


def test_full_tiles_have_no_mask() -> None:
    text = _source("causal").text
    partial, full = text.split("    # Full tiles.\n")
    assert "setp.lt.s32" in partial
    assert "setp" not in full


def test_full_tiles_keep_the_peak() -> None:
    """They neither mask, nor look for the largest score, nor rescale what is summed up."""
    text = _source("causal", KEPT).text
    partial, steady = text.split("    # Full tiles, whose rows have a peak.\n")
    steady, _, again = steady.partition("    # The values of the last tile.\n")
    for what in ("setp", "tl.max(scores", "decay"):
        assert what in partial
        assert what not in steady
        assert what in again
    # Without full tiles, in float16, which has not the range, and where score terms take the
    # registers, there are no such loops.
    slopes = replace(WIDE, terms=load_terms("score + s[head] * (k - q)"))
    for other in (
        _source("causal"),
        _source("causal", KEPT, slopes),
        _source("window(40)", KEPT),
        _source("causal", KEPT, HALF),
    ):
        assert "own_sums" not in other.text
        assert "again" not in other.text


@pytest.mark.parametrize("text", ["causal", "dilated(512, 8)", "k % 8 == 0"])
@pytest.mark.parametrize("config", [CONFIG, KEPT])
@pytest.mark.parametrize("resumes", [False, True])
def test_barriers_are_made_for_those_who_wait(
    text: str, config: KernelConfig, resumes: bool
) -> None:
    """Of a barrier that nobody waits for Triton gives the place to something else. A query that
    comes by pointers needs none."""
    program = lower(load(text), config.block_q, config.block_k, within=True)
    source = emit_gluon_forward(program, WIDE, config, resumes=resumes, hands_on=not resumes)
    made = re.findall(r"(\w+) = allocate\(tl\.int64", source.text)
    assert len(made) == len(set(made)) >= 4
    for name in made:
        assert re.search(rf"\binit_barrier\({name}\.index", source.text), name
        assert re.search(rf"\bwait\({name}\.index", source.text), name
    assert ("query_ready" in made) == (program.tiling == DENSE)


@pytest.mark.parametrize(
    ("text", "bounds"),
    [("causal", 1), ("window(100)", 2), ("streaming(4, 100)", 2), ("full", 1), ("around(50)", 2)],
)
def test_masks_are_comparisons(text: str, bounds: int) -> None:
    source = _source(text).text
    found = re.findall(r'inline_asm_elementwise\("([^"]*)"', source)
    assert {assembly.count("setp") for assembly in found} == {bounds}
    assert "allowed" not in source


def test_moved_boxes_are_masked() -> None:
    """A box that is moved back brings in keys that an earlier tile had."""
    config = replace(CONFIG, block_q=64, block_k=64, num_warps=4, num_stages=3)
    program = lower(load("dilated(64, 8)"), 64, 64, within=True, tiling=residue_tiling(8))
    text = emit_gluon_forward(program, WIDE, config).text
    assert text.count("k_box = tl.minimum(k_first, kv_len - BLOCK_K)") >= 3
    assert "setp.le.and.s32" in text


def test_kept_where() -> None:
    text = kept_where("scores", [("<", "a", "b"), ("<=", "c", "d")])
    assert "setp.lt.s32 p, $2, $3; setp.le.and.s32 p, $4, $5, p;" in text
    assert '"=f,f,r,r,r,r"' in text
    assert "[scores, a, b, c, d]" in text


def test_lanes_have_a_layout() -> None:
    lines = ["residue_wide = tl.arange(0, 32).to(tl.int64)", "x = tl.cumsum(y, 0) + end_0"]
    assert list(gluon_text(lines)) == [
        "residue_wide = tl.arange(0, 32, layout=LANES).to(tl.int64)",
        "x = running_sum(y) + end_0",
    ]


def test_names_of_gluon_stand_in_the_prelude_alone() -> None:
    """Its interface changes: no other line may call what is not the language's core."""
    for text in ("causal", "ladder(4, 64, 100, 7)"):
        source = _source(text).text
        rest = source.replace(PRELUDE, "")
        assert "hopper" not in rest
        assert not re.search(r"mbarrier|tma\b|warpgroup_mma|warp_specialize|allocate_shared", rest)


# ------------------------------------------------------------------------------------ warps


@pytest.mark.parametrize(
    ("block_q", "most", "wanted"),
    [(128, None, (168, 240)), (64, None, (128, 232)), (64, 136, (80, 136)), (128, 200, (144, 200))],
)
def test_registers(block_q: int, most: int | None, wanted: tuple[int, int]) -> None:
    """What threads get in the end is no more than what they were started with."""
    config = replace(CONFIG, block_q=block_q, num_warps=block_q // 16, max_registers=most)
    warps = warps_of(config)
    assert (warps.at_start, warps.computing_registers) == wanted
    shared = warps.computing * warps.computing_registers + warps.loading_registers
    assert shared <= warps.at_start * (warps.computing + 1)
    programs = 65536 // (128 * (warps.computing + 1) * warps.at_start)
    assert programs >= (2 if block_q == 64 else 1)


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"load": "pointer"}, "loads by descriptors"),
        ({"block_q": 256, "num_warps": 16}, "query tiles have 64 or 128 rows"),
        ({"block_k": 32}, "key tiles have 64 or 128 keys"),
        ({"num_warps": 4}, "128 rows take 8 warps"),
        ({"num_stages": 1}, "at least 2 stages"),
        ({"max_registers": 100}, "registers come in eights"),
    ],
)
def test_configs_are_refused_in_words(change: dict[str, object], words: str) -> None:
    config = replace(CONFIG, **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=words):
        check_config(config, WIDE, "cuda:90")


@pytest.mark.parametrize("target", ["cuda:80", "cuda:100", "hip:gfx942", "interpreter"])
def test_other_targets_are_refused(target: str) -> None:
    with pytest.raises(ConfigError):
        check_config(CONFIG, WIDE, target)
    check_config(CONFIG, WIDE, "cuda:90")


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (Problem("float32", 64, 64), "16-bit numbers, not of float32"),
        (Problem("bfloat16", 96, 96), "not 96 and 96"),
        (Problem("bfloat16", 128, 64), "not 128 and 64"),
    ],
)
def test_problems_are_refused_in_words(problem: Problem, words: str) -> None:
    program = lower(load("causal"), 128, 128, within=True)
    assert words in (reason_against(program, problem) or "")
    with pytest.raises(ConfigError, match=words):
        emit_gluon_forward(program, problem, CONFIG)


@pytest.mark.parametrize(
    ("score", "sink", "words"),
    [
        ("score + bias[k]", None, "nothing up for each row or key"),
        ("score", "sinks[head, q]", "nothing up for each row or key"),
        ("score * sigmoid(score)", None, "no sigmoid"),
    ],
)
def test_score_terms_are_refused_in_words(score: str, sink: str | None, words: str) -> None:
    problem = replace(WIDE, terms=load_terms(score, sink))
    with pytest.raises(ConfigError, match=words):
        check_config(CONFIG, problem, "cuda:90")
    with pytest.raises(ConfigError, match=words):
        _source("causal", problem=problem)


def test_score_terms_stand_where_they_change() -> None:
    """Per row before the loops, per pair in each tile; only what reads keys counts them."""
    slopes = _source("causal", problem=replace(WIDE, terms=load_terms("score + s[head] * (k - q)")))
    before, _, loops = slopes.text.partition("# Partial tiles, with the mask.")
    assert "read_table_s(real_table_s_ptr" in before.rpartition("def attend(")[2]
    assert "read_table_s" not in loops
    assert loops.count("k = k_box + columns") == 2
    caps = _source("causal", problem=replace(WIDE, terms=load_terms("9 * tanh(score / 9)")))
    assert "k = k_box" not in caps.text
    assert caps.text.count("hyperbolic_tangent(") == 4  # its source, the first tile, both loops
    sinks = _source("causal", problem=replace(WIDE, terms=load_terms(None, "s[head]")))
    assert sinks.text.count("# The sink is the first key") == 1
    assert " * scale" in sinks.text


def test_listed_tiles_are_refused() -> None:
    pattern = load("pattern p(keep: bool[*, *]): causal and keep[q // 64, k // 64]")
    program = lower(pattern, 128, 128, within=True)
    assert reason_against(program, WIDE) == "tables decide which tiles are visited"
    assert reason_against(lower(load("causal"), 128, 128), replace(WIDE, terms=PLAIN)) is None


def test_peaks_are_kept_by_gluon() -> None:
    with pytest.raises(ConfigError, match="peaks='kept' is for Gluon"):
        check_config(KernelConfig(peaks="kept"), WIDE, "cuda:90")
