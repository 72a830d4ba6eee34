"""The command line: every command, its exit code, its JSON, and errors without a traceback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from patterncc import cli, compilation
from patterncc.commands.arguments import COMMANDS
from patterncc.dsl import library
from tests.front.conftest import Run

ROOT = Path(__file__).resolve().parents[2]
STREAMING = (
    "pattern streaming(sinks = 4, window = 64):\n    causal and (k < sinks or q - k < window)\n"
)
BROKEN = "pattern broken(n):\n    casual and windw(n)\n"


@pytest.fixture
def streaming(tmp_path: Path) -> str:
    path = tmp_path / "streaming.pat"
    path.write_text(STREAMING, encoding="utf-8")
    return str(path)


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "broken.pat"
    path.write_text(BROKEN, encoding="utf-8")
    return str(path)


def process(
    argv: Sequence[str], *, text: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "patterncc", *argv],
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1", **environment},
    )


# ------------------------------------------------------------------------------- the whole


def test_help_loads_nothing_large() -> None:
    code = (
        "import sys; from patterncc.cli import main; main(['--help']);"
        "heavy = {'torch', 'sympy', 'optuna', 'triton', 'numpy', 'islpy', 'lark', 'rich'};"
        "print('loaded:', *sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


@pytest.mark.parametrize("command", ["check", "explain", "plot", "fmt", "library"])
def test_light_commands_load_no_torch(command: str) -> None:
    code = (
        f"import sys, importlib; importlib.import_module('patterncc.commands.{command}');"
        "print(*sorted({'torch', 'sympy', 'optuna', 'triton', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(run: Run, command: str) -> None:
    found = run(*filter(None, [command]), "--help")
    assert found.code == cli.OK
    assert found.out.startswith(f"usage: patterncc {command}".rstrip())


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nothing"],
        ["check"],
        ["explain", "causal", "--q-len", "many"],
        ["explain", "causal", "--q-len", "0"],
        ["explain", "causal", "--layer", "3..1"],
        ["explain", "causal", "-p", "3=n"],
        ["explain", "causal", "--heads", "8", "--kv-heads", "3"],
        ["explain", "causal", "--q"],
        ["explain", "causal", "--head", "8"],
        ["explain", "causal", "--q-len", "32M"],
        ["plot", "causal", "-o", "mask.gif"],
        ["plot", "causal", "--layer", "40"],
        ["fmt", "causal.pat", "--write", "--check"],
        ["library", "show"],
        ["library", "show", "no_such_pattern"],
        ["completion", "cmd"],
        ["compile", "causal", "--emit", "everything"],
        ["compile", "causal", "--emit", "all"],
        ["compile", "causal", "--emit", "ir", "--after", "no_such_pass"],
        ["compile", "causal", "--emit", "ptx", "--target", "abacus"],
        ["run", "causal", "--device", "abacus"],
        ["run", "causal", "--q-len", "16", "--layer", "5"],
        ["check", "no/such/file.pat"],
    ],
)
def test_wrong_usage(run: Run, argv: list[str]) -> None:
    found = run(*argv)
    assert found.code == cli.USAGE, found.out
    assert "error" in found.err
    assert "Traceback" not in found.err
    assert found.out == ""


@pytest.mark.parametrize(
    ("argv", "message", "command"),
    [
        (["explan"], "COMMAND: invalid choice 'explan' (did you mean `explain`?); legal: ", ""),
        (["explain", "causal", "--qlen", "5"], "unrecognized arguments: --qlen 5", " explain"),
        (["shard", "causal", "--ranks", "x"], "--ranks: 'x' is no integer", " shard"),
        (["live"], "the following arguments are required: PATTERN", " live"),
    ],
)
def test_wrong_usage_is_one_line_and_where_to_look(
    run: Run, argv: list[str], message: str, command: str
) -> None:
    error, hint = run(*argv).err.splitlines()
    assert error.startswith(f"error: {message}")
    assert hint == f"  = hint: see `patterncc{command} --help`"


@pytest.mark.parametrize("command", ["check", "explain", "plot", "compile", "run"])
@pytest.mark.parametrize(
    "text", ["casual and window(8)", "k <=", "q - k < 1 == 2 and true or", "\x00"]
)
def test_a_pattern_with_mistakes(run: Run, command: str, text: str) -> None:
    found = run(command, text)
    assert found.code == cli.FAILED
    shown = found.out if command == "check" else found.err
    assert "error[" in shown
    assert "Traceback" not in found.out + found.err


@pytest.mark.parametrize("command", ["explain", "plot", "run"])
def test_a_pattern_whose_table_is_missing(run: Run, command: str) -> None:
    found = run(command, "pattern packed(doc: segments): causal and doc[q] == doc[k]")
    assert found.code == cli.USAGE
    assert "no table was given for `doc`; --table doc=FILE is one" in found.err
    assert "Traceback" not in found.err
    # What it means is said all the same.
    assert ("doc[q] = doc[k]" in found.out) == (command == "explain")


def test_a_bug_is_reported_without_a_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> object:
        raise ZeroDivisionError(name)

    monkeypatch.setattr("importlib.import_module", fail)
    found = run("check", "causal")
    assert found.code == cli.FAILED
    assert "ZeroDivisionError" in found.err and "please report" in found.err
    assert "Traceback" not in found.err
    assert "Traceback" in run("check", "causal", "--debug").err


def test_debug_from_the_environment() -> None:
    def traceback(value: str) -> bool:
        return "Traceback" in process(["check", "nowhere.pat"], PATTERNCC_DEBUG=value).stderr

    assert traceback("1") and not traceback("") and not traceback("perhaps")


def test_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupt)
    assert run("check", "causal").code == cli.INTERRUPTED


def test_module_and_exit_code_of_a_process(broken: str) -> None:
    assert process(["check", broken]).returncode == cli.FAILED
    good = process(["check", "-"], text=STREAMING)
    assert good.returncode == cli.OK
    assert "\x1b" not in good.stdout


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m patterncc explain causal --q-len 512 | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "causal\n"
    assert done.stderr == ""


# ------------------------------------------------------------------------------- check and fmt


def test_check(run: Run, streaming: str, broken: str) -> None:
    assert run("check", streaming).code == cli.OK
    found = run("check", streaming, broken)
    assert found.code == cli.FAILED
    assert found.out.count("error[unknown-name]") == 2
    assert "did you mean `causal`?" in found.out


def test_check_json(run: Run, streaming: str, broken: str) -> None:
    found = run("check", streaming, broken, "--json")
    assert found.code == cli.FAILED
    document = found.json
    assert document["ok"] is False
    good, bad = document["files"]
    assert good["ok"] and good["pattern"]["parameters"] == {"sinks": 4, "window": 64}
    assert bad["pattern"] is None
    assert [(d["code"], d["line"], d["column"]) for d in bad["diagnostics"]] == [
        ("unknown-name", 2, 5),
        ("unknown-name", 2, 16),
    ]


def test_check_every_library_pattern(run: Run) -> None:
    assert run("check", *library.names()).code == cli.OK


def test_not_utf8(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "latin.pat"
    path.write_bytes(b"causal # \xff\n")
    found = run("check", str(path))
    assert found.code == cli.USAGE
    assert "not UTF-8 at byte 9" in found.err


def test_fmt(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "messy.pat"
    path.write_text("# why\npattern f( n=3 ):  k<=q   and q-k<n # near\n", encoding="utf-8")
    assert run("fmt", str(path), "--check").code == cli.FAILED
    printed = run("fmt", str(path)).out
    assert "# why" in printed and "# near" in printed
    written = run("fmt", str(path), "--write")
    assert written.code == cli.OK and str(path) in written.out
    assert path.read_text(encoding="utf-8") == printed
    assert run("fmt", str(path)).out == printed
    assert run("fmt", str(path), "--check").code == cli.OK
    assert run("fmt", str(path), "--write").out == ""


def test_fmt_writes_nothing_where_one_file_is_wrong(run: Run, tmp_path: Path) -> None:
    messy, wrong = tmp_path / "messy.pat", tmp_path / "wrong.pat"
    messy.write_text("k<=q", encoding="utf-8")
    wrong.write_text("k <=", encoding="utf-8")
    assert run("fmt", "--write", str(messy), str(wrong)).code == cli.FAILED
    assert messy.read_text(encoding="utf-8") == "k<=q"
    assert run("fmt", "--write", "-").code == cli.USAGE


# ------------------------------------------------------------------------------- compile, library


def test_compile_prints_every_stage_that_help_names(run: Run) -> None:
    listed = run("compile", "--help").out
    assert [name for name in compilation.STAGE_NAMES if name not in listed] == []


@pytest.mark.parametrize("stage", ["ast", "mask", "ir", "triton"])
def test_compile(run: Run, streaming: str, tmp_path: Path, stage: str) -> None:
    found = run("compile", streaming, "--emit", stage)
    assert found.code == cli.OK and "sinks" in found.out
    target = tmp_path / "stage.txt"
    assert run("compile", streaming, "--emit", stage, "-o", str(target)).code == cli.OK
    assert target.read_text(encoding="utf-8") == found.out


def test_library(run: Run) -> None:
    listed = run("library").out
    assert [name for name in library.names() if name not in listed] == []
    assert [name for name in library.names() if library.origin(name) not in listed] == []
    shown = run("library", "show", "local_strided").out
    assert shown == library.source("local_strided").text
    documents = run("library", "--json").json
    assert [document["name"] for document in documents] == list(library.names())
    ladder = run("library", "show", "ladder", "--json").json
    assert ladder["signature"].startswith("ladder(sinks = ")
    assert ladder["fixed"]["period"] == 8


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(run: Run, shell: str) -> None:
    script = run("completion", shell).out
    for name in COMMANDS:
        assert name in script
    assert "kv-len" in script and "bfloat16" in script


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_scripts_parse(run: Run, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    script = tmp_path / "completion"
    script.write_text(run("completion", shell).out, encoding="utf-8")
    subprocess.run([shell, "-n", str(script)], check=True)


def test_a_mistake_is_told_before_torch_is_loaded() -> None:
    code = (
        "import sys; from patterncc.cli import main; main(['run', 'casual']);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_bash_completion_works(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(run("completion", "bash").out, encoding="utf-8")
    ask = (
        f"source {script}; COMP_WORDS=(patterncc run --dt); COMP_CWORD=2; _patterncc;"
        'echo "${COMPREPLY[*]}"'
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout == "--dtype\n"
