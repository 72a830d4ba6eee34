"""Questions end: what takes too long in C is stopped, and the next question is answered."""

import operator
import os
import subprocess
import sys
import time
from pathlib import Path

import islpy as isl
import pytest

from patterncc.codegen.facts import questions
from patterncc.codegen.facts.questions import ask
from patterncc.codegen.pieces import TooIntricateError
from patterncc.codegen.presburger.translate import is_spent
from patterncc.dsl import load
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Predicate

PLAIN: list[Predicate] = [load("streaming").body]
INTRICATE: list[Predicate] = [load("neighborhood").body]

ROOT = Path(__file__).resolve().parents[2]


def test_plain_questions_are_asked_here() -> None:
    assert ask(PLAIN, os.getpid) == os.getpid()
    assert ask([load("ladder").body], os.getpid) == os.getpid()


def test_intricate_ones_elsewhere_in_one_process() -> None:
    first = ask(INTRICATE, os.getpid)
    assert first != os.getpid() and ask(INTRICATE, os.getpid) == first
    assert ask([load("cover(4, 4, window(8))").body], operator.add, 2, 3) == 5


def test_errors_arrive() -> None:
    with pytest.raises(ZeroDivisionError):
        ask(INTRICATE, operator.floordiv, 1, 0)
    assert ask(INTRICATE, operator.floordiv, 7, 2) == 3


def test_what_computes_for_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "SECONDS", 1)
    monkeypatch.setattr(questions, "PATIENCE", 20)
    before = ask(INTRICATE, os.getpid)
    start = time.monotonic()
    with pytest.raises(TooIntricateError, match="within 1 seconds"):
        ask(INTRICATE, sum, range(10**12))  # no Python code runs that could be interrupted
    assert time.monotonic() - start < 19
    assert ask(INTRICATE, os.getpid) != before


def test_what_waits_for_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "SECONDS", 1)
    monkeypatch.setattr(questions, "PATIENCE", 1)
    with pytest.raises(TooIntricateError):
        ask(INTRICATE, time.sleep, 60)
    assert ask(INTRICATE, operator.add, 1, 1) == 2


def test_a_process_that_died_is_replaced() -> None:
    with pytest.raises(TooIntricateError):
        ask(INTRICATE, os._exit, 3)
    assert ask(INTRICATE, operator.add, 1, 1) == 2


def test_a_process_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_process", questions._Process())
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(UnsupportedError, match="does not start"):
        ask(INTRICATE, os.getpid)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forks_ask_for_themselves() -> None:
    code = (
        "import operator, os\n"
        "from patterncc.codegen.facts.questions import ask\n"
        "from patterncc.dsl import load\n"
        "bodies = [load('neighborhood').body]\n"
        "first = ask(bodies, os.getpid)\n"
        "if os.fork() == 0:\n"
        "    assert ask(bodies, os.getpid) != first\n"
        "    os._exit(0)\n"
        "_, status = os.wait()\n"
        "assert status == 0 and ask(bodies, os.getpid) == first\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_nothing_is_left_behind() -> None:
    code = (
        "import os\n"
        "from patterncc.codegen.facts.questions import ask\n"
        "from patterncc.dsl import load\n"
        "print(ask([load('neighborhood').body], os.getpid))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, capture_output=True
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


@pytest.mark.parametrize("budget", [1, 2, 50])
def test_a_budget_that_ends_within_a_text_is_recognised(budget: int) -> None:
    context = isl.Context()
    context.set_max_operations(budget)
    with pytest.raises(isl.Error) as caught:
        isl.Set.read_from_str(context, "[n] -> { [q, k] : 0 <= 16 k <= q < 16 k + 16 and q < n }")
    assert is_spent(caught.value)
