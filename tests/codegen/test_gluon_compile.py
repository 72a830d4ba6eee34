"""Gluon kernels compiled without a GPU: they compile, and to good code."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import KernelConfig, Peaks, shared_bytes, shared_limit
from patterncc.codegen.gpu.emitter_choice import too_many_registers
from patterncc.codegen.gpu.gluon.forward_source import emit_gluon_forward
from patterncc.codegen.gpu.launch import CompiledKernel, compile_for
from patterncc.codegen.problem import DType, Problem
from patterncc.compilation import Compilation
from patterncc.dsl import library, load
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.score.terms import PLAIN, ScoreTerms, load_terms
from tests.codegen.crossing import each_with_one
from tests.codegen.library_programs import library_pattern
from tests.codegen.machine_code import disassemble, loop_bodies
from tests.codegen.machine_flow import doubtful_products

SIZES = {"heads": 8, "kv_heads": 2, "layers": 4}
WIDE = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")
SMALL = KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon")
LONG = KernelConfig(64, 128, 4, 2, "descriptor", emitter="gluon")

HOISTED = 32
"""Bytes of local memory that nobody minds: numbers of a thread that are stored once, before the
warps part, where a warpgroup that fills its registers reads them."""


MOST_SPILLED = 224
"""Bytes that masks with many key terms spill, before their loops and in their partial tiles."""

MOST_READ = 3
"""Spilled numbers that a loop of full tiles reads: `llama4_padded`, others none."""


def _compiled(
    text: str,
    config: KernelConfig,
    folder: Path,
    head_dim: int = 128,
    dtype: DType = "bfloat16",
    within: bool = True,
    terms: ScoreTerms = PLAIN,
) -> list[CompiledKernel]:
    """Kernels that take no care of numbers that are not finite: what loops cost is seen in them.
    Those that do are compiled beside them (what they have besides is never run by finite numbers,
    and may spill; their loops: `test_gluon_isolation_compile.py`)."""
    problem = Problem(dtype, head_dim, head_dim, terms=terms, isolates=False)
    passes = lower_passes(
        load(text), config.block_q, config.block_k, sizes=SIZES, within=within, transposed=False
    )
    last = len(passes) - 1
    kernels, careful = (
        [
            compile_for(
                emit_gluon_forward(program, shape, config, resumes=n > 0, hands_on=n < last),
                "cuda:90",
                folder=folder,
            )
            for n, program in enumerate(passes)
        ]
        for shape in (problem, replace(problem, isolates=None))
    )
    for kernel in (*kernels, *careful):
        _products_are_sure(kernel, folder)
        _barriers_stay_barriers(kernel)
        assert kernel.shared <= (shared_limit("cuda:90") or 0)
    return kernels


def _products_are_sure(kernel: CompiledKernel, folder: Path) -> None:
    """ptxas 12.8 loses places of operands where products stand in branches."""
    assert doubtful_products(disassemble(kernel.stages["cubin"], folder)) == []


def _barriers_stay_barriers(kernel: CompiledKernel) -> None:
    """What an `mbarrier` was made in is used for nothing else, as it is where one is made that
    nobody waits for and a warpgroup's maximum needs room: such a kernel stopped a device."""
    ptx = kernel.stages["ptx"]
    text = ptx.decode() if isinstance(ptx, bytes) else ptx
    places = dict(re.findall(r"add\.s32\s+(%r\d+), %r\d+, (\d+);", text))
    made = re.findall(r"mbarrier\.init\S* \[(%r\d+)", text)
    read = re.findall(r"ld\.shared\.\S+\s+\S+ \[global_smem\+(\d+)\]", text)
    assert made
    assert read or "if again > 0" not in kernel.source.text
    assert not {places[register] for register in made} & set(read)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    each_with_one(
        [(WIDE, 128), (SMALL, 128), (LONG, 64), (WIDE, 64), (SMALL, 64)], ["bfloat16", "float16"]
    ),
)
@pytest.mark.parametrize("peaks", ["each", "kept"])
def test_warps_part(
    shape: tuple[KernelConfig, int], dtype: DType, peaks: Peaks, tmp_path: Path
) -> None:
    """One warp copies, whole warpgroups multiply, and no product waits for the one before it."""
    config, head_dim = replace(shape[0], peaks=peaks), shape[1]
    (kernel,) = _compiled("causal", config, tmp_path, head_dim, dtype)
    assert kernel.spilled <= (HOISTED if config.block_q == 128 and head_dim == 128 else 0)
    needed = shared_bytes(config, Problem(dtype, head_dim, head_dim))
    assert 0 <= kernel.shared - needed <= 1024
    assert kernel.shared <= (shared_limit("cuda:90") or 0)
    ptx = str(kernel.stages["ptx"])
    assert "setmaxnreg.inc.sync.aligned.u32" in ptx
    # Of each warpgroup: one wait for all before the loops, in each loop one that leaves the values
    # running and one for them, one at the end. Where peaks are kept the first full tile has a loop
    # of its own, and where all is computed once more each product is waited for.
    computing = config.block_q // 64
    waits = re.findall(r"wgmma\.wait_group\.sync\.aligned (\d);", ptx)
    steady = dtype == "bfloat16" and peaks == "kept"
    loops = 3 if steady else 2
    again = ["0"] * 2 if steady else []
    assert sorted(waits) == sorted(["0", *(["1", "0"] * loops), "0", *again] * computing)
    # A query tile for each warpgroup, keys and values before the loops and in both, each copy 128
    # bytes wide; and once more in each warpgroup, whose warps share what is wider.
    copies = len(re.findall(r"cp\.async\.bulk\.tensor\.4d\.shared::\w+\.global", ptx))
    wide = head_dim // 64
    assert copies == wide * (computing + 3 * 2) + computing * len(again)
    assert ptx.count("cp.async.bulk.tensor.4d.global.shared::cta") == computing
    assert _steady_loops(kernel, tmp_path) == (computing if steady else 0)


def test_two_programs_fit_a_multiprocessor(tmp_path: Path) -> None:
    """Where one warpgroup computes, another program must fit beside it."""
    for config, head_dim in ((SMALL, 128), (LONG, 64)):
        (kernel,) = _compiled("window(1024)", config, tmp_path, head_dim)
        assert 2 * (kernel.shared + 1024) <= (shared_limit("cuda:90") or 0) + 1024
        assert kernel.registers * 256 * 2 <= 65536


@pytest.mark.parametrize("config", [SMALL, WIDE])
def test_classes_that_keep_the_peak(config: KernelConfig, tmp_path: Path) -> None:
    """Such a kernel has no barrier of the query. With one that nobody waits for, as it once had, a
    maximum is stored over it, and the check sees that."""
    (kernel,) = _compiled("dilated(512, 8)", replace(config, peaks="kept"), tmp_path)
    assert kernel.spilled <= HOISTED
    assert _steady_loops(kernel, tmp_path) == config.block_q // 64
    made = "    key_ready = allocate(tl.int64, [STAGES, 1], BARRIER)\n"
    assert made in kernel.source.text
    unused = "    unused = allocate(tl.int64, [1, 1], BARRIER)\n"
    unused += "    init_barrier(unused.index(0), count=1)\n"
    text = kernel.source.text.replace(made, unused + made)
    with_one = compile_for(replace(kernel.source, text=text), "cuda:90", folder=tmp_path)
    with pytest.raises(AssertionError):
        _barriers_stay_barriers(with_one)


@pytest.mark.parametrize("text", ["sliding_tile", "sliding_tile_heads"])
@pytest.mark.parametrize("config", [WIDE, SMALL])
def test_lines_of_a_raster(config: KernelConfig, text: str, tmp_path: Path) -> None:
    """What loops around loops take is computed before them: their own read nothing that spilled."""
    (kernel,) = _compiled(text, replace(config, peaks="kept"), tmp_path)
    assert kernel.spilled <= MOST_SPILLED
    assert _steady_loops(kernel, tmp_path) == config.block_q // 64
    bodies = loop_bodies(disassemble(kernel.stages["cubin"], tmp_path))
    # Keys and values of a tile are four copies; of partial tiles, and of full ones.
    loading = sorted((body for body in bodies if body.count("UTMALDG") == 4), key=len)[:2]
    assert len(loading) == 2 and not any("LDL" in body or "STL" in body for body in loading)


# Any rows: all that the loops have where rows are within the keys, and more ends. The other kind is
# what `test_library` compiles.
@pytest.mark.parametrize(
    ("text", "within"),
    each_with_one(
        [
            "window(512) or dilated(512, 8)",
            "dilated(512, 8)",
            "local_strided(16, 4, 4)",
            "ladder(4, 64, 128, 8)",
            "pattern p(doc: segments): causal and doc[q] == doc[k]",
            "pattern p(w: int[head]): window(w[head])",
            "pattern p(image: int[token]): causal or image[q] == image[k]",
            "if head in {0, 3} then causal else streaming(4, 50)",
            "causal and chunked(256)",
        ],
        [False, True],
        turns=[False],
    ),
)
def test_sweeps_and_masks(text: str, within: bool, tmp_path: Path) -> None:
    for kernel in _compiled(text, SMALL, tmp_path, within=within):
        assert kernel.spilled <= HOISTED
        assert kernel.shared <= (shared_limit("cuda:90") or 0)


@pytest.mark.parametrize(("config", "head_dim"), [(WIDE, 128), (SMALL, 128), (LONG, 64)])
@pytest.mark.parametrize(
    ("score", "sink"),
    [
        (None, "sinks[head]"),
        ("50 * tanh(score / 50)", None),
        ("score + slope[head] * (k - q)", "sinks[head]"),
    ],
)
def test_score_terms(
    score: str | None, sink: str | None, config: KernelConfig, head_dim: int, tmp_path: Path
) -> None:
    terms = load_terms(score, sink)
    (kernel,) = _compiled("window(1024)", config, tmp_path, head_dim, terms=terms)
    assert kernel.spilled <= (2 * HOISTED if config == WIDE else HOISTED)
    assert kernel.shared <= (shared_limit("cuda:90") or 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head_dim"),
    each_with_one([n for n in library.names() if n != "neighborhood_1d"], [128, 64]),
)
def test_library(name: str, head_dim: int, tmp_path: Path) -> None:
    """What untuned calls take, compiled: where no Gluon kernel is taken, Triton's."""
    pattern = library_pattern(name)
    usual = Problem("bfloat16", head_dim, head_dim)
    for isolates in (None, False):
        try:
            compilation = Compilation(
                pattern, problem=replace(usual, isolates=isolates), sizes=SIZES
            )
            emitter = compilation.emitter.name
        except UnsupportedError:
            pytest.skip("no lowering yet")
        if emitter == "gluon" or isolates is None:
            _check_library(compilation, emitter, tmp_path, careful=isolates is None)


def _check_library(
    compilation: Compilation, emitter: str, tmp_path: Path, *, careful: bool
) -> None:
    for source in compilation.kernels:
        assert source.config.emitter == emitter
        kernel = compile_for(source, "cuda:90", folder=tmp_path)
        assert kernel.shared <= (shared_limit("cuda:90") or 0)
        if emitter == "triton":
            continue
        # What repairs may spill; loops may not.
        assert careful or kernel.spilled <= MOST_SPILLED
        _products_are_sure(kernel, tmp_path)
        _barriers_stay_barriers(kernel)
        if not compilation.pattern.tables and source.config.peaks == "kept":
            _steady_loops(kernel, tmp_path, most_read=MOST_READ)


@pytest.mark.parametrize(("config", "head_dim"), [(SMALL, 128), (LONG, 64)])
@pytest.mark.parametrize(
    ("name", "fits"),
    [("sinklora", True), ("deepspeed_fixed", True), ("tri_shape", False), ("longformer", False)],
)
def test_what_takes_registers(
    name: str, fits: bool, config: KernelConfig, head_dim: int, tmp_path: Path
) -> None:
    """What the choice of an emitter says of tiles of one warpgroup: masks do not spill in them,
    whatever they ask; bounds of many sweeps do, and only in the warp that loads."""
    problem = Problem("bfloat16", head_dim, head_dim, isolates=False)
    tile = config.block_q, config.block_k
    passes = lower_passes(library_pattern(name), *tile, sizes=SIZES, transposed=False)
    assert (too_many_registers(passes, config) is None) == fits
    kernel = compile_for(
        emit_gluon_forward(passes[0], problem, replace(config, peaks="kept")),
        "cuda:90",
        folder=tmp_path,
    )
    assert (kernel.spilled == 0) == fits
    if not fits:
        assert kernel.spilled >= 256
    assert _steady_loops(kernel, tmp_path) == 1


def test_divisions_spill_where_tiles_are_loaded(tmp_path: Path) -> None:
    """Steps that are no power of two, and those that are."""
    for text, fits in (("ladder(4, 64, 100, 7)", False), ("ladder(4, 64, 128, 8)", True)):
        passes = lower_passes(load(text), 64, 64, sizes=SIZES, transposed=False)
        assert (too_many_registers(passes, SMALL) is None) == fits
        problem = Problem("bfloat16", 128, 128, isolates=False)
        source = emit_gluon_forward(passes[0], problem, SMALL)
        kernel = compile_for(source, "cuda:90", folder=tmp_path)
        assert (kernel.spilled <= HOISTED) == fits


def test_masks_spill_where_two_warpgroups_compute(tmp_path: Path) -> None:
    """The same mask in tiles of both kinds."""
    config = replace(WIDE, peaks="kept")
    passes = lower_passes(library_pattern("tree"), 128, 128, sizes=SIZES, transposed=False)
    assert "more than limits" in (too_many_registers(passes, config) or "")
    assert too_many_registers(passes, replace(SMALL, peaks="kept")) is None
    problem = Problem("bfloat16", 128, 128, isolates=False)
    source = emit_gluon_forward(passes[0], problem, config)
    assert compile_for(source, "cuda:90", folder=tmp_path).spilled > HOISTED


def _steady_loops(kernel: CompiledKernel, folder: Path, most_read: int = 0) -> int:
    """How many loops compute weights and find no maximum: those of full tiles. They read next to
    nothing that was spilled, and take few instructions."""
    code = disassemble(kernel.stages["cubin"], folder)
    bodies = loop_bodies(code)
    steady = [body for body in bodies if body.count("MUFU.EX2") >= 32 and "FMNMX" not in body]
    for body in steady:
        assert body.count("LDL") <= most_read
        assert "STL" not in body
        assert len(re.findall(r"/\*[0-9a-f]{4,}\*/", body)) <= 360
    return len(steady)


def test_residues_lie_in_lanes(tmp_path: Path) -> None:
    """Bounds over residue classes are vectors, which need a layout wherever they stand."""
    (kernel,) = _compiled("local_strided(128, 16, 8)", WIDE, tmp_path)
    assert "residue_wide" in kernel.source.text


def test_doubtful_products_are_found() -> None:
    """The second product of a branch takes for computed what the other branch computes."""
    text = """\
        /*0010*/                   UMOV UR25, 0x40000040 ;
        /*0020*/                   UMOV UR24, 0x10 ;
        /*0030*/                   UIADD3.64 UR26, UR24, 0x2, URZ ;
        /*0040*/              @!P2 BRA `(.L_x_1) ;
        /*0050*/                   UIADD3.64 UR20, UR24, 0x4, URZ ;
        /*0060*/                   UMOV UR22, UR26 ;
        /*0070*/                   UMOV UR23, UR27 ;
        /*0080*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR20], R24 ;
        /*0090*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*00a0*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR24], RZ, !UPT ;
        /*00b0*/                   UMOV UR22, UR26 ;
        /*00c0*/                   UMOV UR23, UR27 ;
        /*00d0*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR20], R24, gsb0 ;
        /*00e0*/                   HGMMA.64x64x16.F32.BF16 R88, R120, gdesc[UR20].tnspB, R88 ;
.L_x_2:
        /*00f0*/                   EXIT ;
    """
    (found,) = doubtful_products(text)
    assert "00d0" in found
