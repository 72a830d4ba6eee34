"""What `tests/gpu/racecheck.py` makes of compute-sanitizer's reports."""

from __future__ import annotations

from pathlib import Path

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.gluon.forward_source import emit_gluon_forward
from patterncc.codegen.gpu.launch import compile_for
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from tests.codegen.machine_code import disassemble
from tests.gpu.racecheck import Access, Report, is_dispatch, reports

PRINTED = """\
========= COMPUTE-SANITIZER
CALL 128x128, causal
========= Error: Race reported between Read access at forward+0x1f0 in /tmp/aa0f.py:268
=========     and Write access at forward+0x94f0 in /tmp/aa0f.py:268 [9 hazards]
=========     and Write access at forward+0x112c0 in /tmp/aa0f.py:295 [13 hazards]
=========
CALL 64x64, causal
========= Error: Race reported between Write access at forward+0x10 in e897.py:268
=========     and Read access at forward+0x20 in e897.py:268 [7 hazards]
========= Error: Race reported between Write access at forward+0x30 in e897.py:270
=========     and Write access at forward+0x40 in e897.py:271 [7 hazards]
========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)
"""


def test_reports_are_read() -> None:
    first, second, third = reports(PRINTED)
    assert first == Report(
        "128x128, causal",
        (
            Access("Read", "forward", 0x1F0, "aa0f.py"),
            Access("Write", "forward", 0x94F0, "aa0f.py"),
            Access("Write", "forward", 0x112C0, "aa0f.py"),
        ),
    )
    assert [each.kind for each in second.accesses] == ["Write", "Read"]
    assert (third.call, [each.address for each in third.accesses]) == ("64x64, causal", [48, 64])


def test_the_dispatch_of_warps_is_told_from_other_accesses() -> None:
    read, write = "LDS.U8 R0, [R0+UR4+0x2812c]", "STS.64 [UR8+0x28130], R2"
    assert is_dispatch([read], [write, write])
    assert not is_dispatch([read], [])
    assert not is_dispatch([], [write])
    assert not is_dispatch([read.replace(".U8", "")], [write])
    assert not is_dispatch([read], [write, write.replace("130", "140")])
    assert not is_dispatch([read], [write, "SYNCS.EXCH.64 URZ, [UR8+0x28130], UR16"])


def test_all_warps_meet_between_these_accesses(tmp_path: Path) -> None:
    config = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")
    (program,) = lower_passes(load("causal"), 128, 128, within=True, transposed=False)
    kernel = compile_for(
        emit_gluon_forward(program, Problem("bfloat16", 128, 128), config),
        "cuda:90",
        folder=tmp_path,
    )
    code = disassemble(kernel.stages["cubin"], tmp_path)
    found = [line.partition("*/")[2].strip(" ;") for line in code.splitlines() if "*/" in line]
    reads = [place for place, each in enumerate(found) if each.startswith("LDS.U8")]
    writes = [place for place, each in enumerate(found) if each.startswith("STS.64")]
    assert is_dispatch([found[place] for place in reads], [found[place] for place in writes])
    (read,), (before, after) = reads, writes

    def meets(first: int, last: int) -> int:
        """How often all warps of the program meet between two instructions."""
        return sum(each == "BAR.SYNC.DEFER_BLOCKING 0x1" for each in found[first:last])

    assert meets(read - 4, read) == 1
    assert meets(before + 1, before + 2) == meets(after + 1, after + 2) == 1
    assert meets(before, after) == 3  # told what to do, all have heard it, all are done
