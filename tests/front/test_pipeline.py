"""The stages of a compilation: their texts, their order, and what is kept."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from patterncc import settings
from patterncc.codegen import passes
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.compilation import STAGE_NAMES, STAGES, Compilation, pass_names
from patterncc.dsl.errors import ConfigError, PatternError, UnsupportedError

ROOT = Path(__file__).resolve().parents[2]
STREAMING = "pattern streaming(sinks = 4, window = 16): causal and (k < sinks or q - k < window)"


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PATTERNCC_CACHE_DIR", str(tmp_path))
    settings.settings.cache_clear()
    yield tmp_path
    settings.settings.cache_clear()


def test_the_stages_are_in_order() -> None:
    assert STAGE_NAMES == ("ast", "mask", "ir", "triton", "ttir", "ttgir", "ptx", "amdgcn")
    assert all(stage.meaning and stage.suffix.startswith(".") for stage in STAGES)


def test_every_stage_says_what_it_is() -> None:
    compilation = Compilation(STREAMING)
    assert compilation.text("ast").startswith("Program\n  definitions: Definition streaming")
    mask = compilation.text("mask").splitlines()
    assert "numbers    sinks = 4, window = 16" in mask
    assert "mask       k <= q and (k < sinks or q - k < window)" in mask
    assert f"tiles      {compilation.config.block_q} queries x" in compilation.text("ir")
    assert "from triton.experimental import gluon" in compilation.text("triton")
    by_triton = Compilation(STREAMING, config=KernelConfig(64, 64, 4, 3))
    assert "import triton.language as tl" in by_triton.text("triton")


def test_the_program_after_each_pass() -> None:
    steps = Compilation(STREAMING)
    assert pass_names()[0] == "lower"
    texts = [steps.text("ir", name) for name in pass_names()]
    assert texts[-1] == steps.text("ir")
    assert all(text.startswith("pattern    pattern _(sinks, window)") for text in texts)


def test_a_stage_is_computed_once() -> None:
    compilation = Compilation(STREAMING)
    assert compilation.pattern is compilation.pattern
    assert compilation.programs() is compilation.programs()
    assert compilation.kernels is compilation.kernels


def test_tables_and_fixed_parameters_are_shown() -> None:
    text = "pattern p(n, keep: bool[head, *]): keep[head, k] and q // n == k // n"
    lines = Compilation(text, values={"n": 8}).text("mask").splitlines()
    assert "tables     keep: bool[head, *]" in lines
    assert "fixed      n = 8" in lines
    program = Compilation(text, values={"n": 8}).text("ir").splitlines()
    assert "listed by  keep[head, k_first .. k_last]" in program


@pytest.mark.slow
def test_machine_code(cache_folder: Path) -> None:
    nvidia = Compilation(STREAMING, problem=Problem("float16", 64, 64), target="cuda:80")
    assert ".target sm_80" in nvidia.text("ptx")
    assert "tt.dot" in nvidia.text("ttgir")
    assert [path.suffix for path in (cache_folder / "src").glob("*.*")] == [".py"]
    amd = Compilation(STREAMING, problem=Problem("float16", 64, 64), target="hip:gfx942")
    assert "gfx942" in amd.text("amdgcn")
    with pytest.raises(ConfigError, match=r"cuda:80 has no stage 'amdgcn'; legal: ast, .* ptx"):
        nvidia.text("amdgcn")
    with pytest.raises(ConfigError, match="hip:gfx942 has no stage 'ptx'"):
        amd.text("ptx")


@pytest.mark.slow
def test_files(cache_folder: Path) -> None:
    small = Problem("bfloat16", 64, 64)
    compilation = Compilation("causal", problem=small, config=KernelConfig(64, 64, 4, 3))
    files = dict(compilation.files())
    assert list(files)[:3] == ["00-ast.txt", "01-mask.txt", "02-ir-after-lower.txt"]
    assert [name.split("-", 1)[1] for name in list(files)[-5:]] == [
        "ir.txt",
        "triton.py",
        "ttir.mlir",
        "ttgir.mlir",
        "ptx.ptx",
    ]
    assert all(files.values())


def test_refusals() -> None:
    with pytest.raises(PatternError, match=r"file\.pat:1:1"):
        Compilation("casual", file="file.pat").text("mask")
    with pytest.raises(PatternError):
        Compilation("k <= ").text("ast")
    with pytest.raises(ConfigError, match="block_q"):
        Compilation("causal", config=KernelConfig(block_q=100)).text("triton")
    with pytest.raises(UnsupportedError, match="float64"):
        Compilation("causal", problem=Problem("float64", 64, 64)).text("triton")


def test_texts_are_the_same_in_every_process() -> None:
    code = (
        "from patterncc.compilation import Compilation\n"
        f"c = Compilation({STREAMING!r})\n"
        "print(*(c.text(stage) for stage in ('ast', 'mask', 'ir', 'triton')))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(texts) == 1


def test_every_program_is_verified_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    monkeypatch.setattr(passes, "verify", lambda program, stage: looked_at.append(stage))
    config = KernelConfig(64, 64, 4, 3)  # else programs of several tile shapes are counted
    Compilation("causal", config=config).text("ir")
    assert looked_at == []
    monkeypatch.setenv("PATTERNCC_VERIFY", "1")
    settings.settings.cache_clear()
    try:
        Compilation("causal", config=config).text("ir")
    finally:
        settings.settings.cache_clear()
    assert looked_at == list(pass_names())
