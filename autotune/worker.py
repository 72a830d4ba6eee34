"""`Worker`: a child process that measures, so that a config which crashes, hangs or eats all
memory costs one trial and nothing else. The parent never touches the device.

The child leads a session of its own: at the time limit it is killed with all it started. Should the
parent die first, the child ends when it next waits for work, or by its own watchdog.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import IO, Any

from patterncc.autotune.measurement import Measurement
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.dsl.errors import PatternccError, TuningError, UnsupportedError

START_LIMIT = 300.0
"""Seconds that a child may take to start: it imports torch, draws the input, computes the
reference."""

_STARTER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from patterncc.autotune.child import serve; serve(int(sys.argv[2]))"
)
_GRACE = 5.0  # seconds after the parent's limit at which the child's own watchdog ends it
_LAST_WORDS = 400  # characters of a dead child's messages that are kept


@dataclass(frozen=True, slots=True)
class Maker:
    """Names the function that makes a child's measurer, and what it is called with.

    Attributes:
        module: Where it is.
        function: Its name. It returns an object with `measure(config, best)`, which gives a
            `Measurement`, and `race(configs)`, which gives one for each.
        arguments: What it is called with; they are pickled.
    """

    module: str
    function: str
    arguments: tuple[Any, ...] = ()


class WorkerLostError(TuningError):
    """The child crashed, or was ended at its time limit, in the middle of a question.

    Args:
        message: What became of it.
        failures: As of any `TuningError`.
        state: `crashed` or `hung`.
    """

    def __init__(
        self, message: str, failures: tuple[tuple[str, str], ...] = (), state: str = "crashed", /
    ) -> None:
        super().__init__(message, failures)
        self.args = (message, failures, state)

    @property
    def state(self) -> str:
        """`crashed` or `hung`."""
        state: str = self.args[2]
        return state


class _ChildDiedError(Exception):
    """The child ended, or was ended, without an answer; the argument is what became of it."""


class Worker:
    """Measures configs in a child process, which is started when it is needed and again after it
    died. To be used with `with`.

    Args:
        maker: What makes the measurer.
        limit: Seconds that one measurement may take.
    """

    def __init__(self, maker: Maker, limit: float = 60.0) -> None:
        if os.name != "posix":
            raise UnsupportedError(
                "tuning runs kernels in processes that it can end with all they started, which "
                f"{sys.platform} does not offer",
                "tune on Linux or macOS; configs tuned there can be imported here",
            )
        self._maker = maker
        self._limit = limit
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._messages: IO[bytes] | None = None
        self._set_up: tuple[str, tuple[Any, ...]] | None = None
        self.starts = 0
        """How many children were started so far."""

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def measure(self, config: KernelConfig, best: float = float("inf")) -> Measurement:
        """Tries one config.

        Args:
            config: What to try.
            best: The least time so far, in seconds: a config that is much slower is given up early.

        Raises:
            TuningError: The measurer itself cannot be made, whatever the config.
        """
        found: Measurement
        try:
            found = self._ask("measure", (config, best), self._limit)
        except _ChildDiedError as error:
            return Measurement(*error.args)
        return found

    def race(self, configs: Sequence[KernelConfig]) -> tuple[Measurement, ...]:
        """Times some configs in turn, so that whatever else the machine does hits them all.

        Raises:
            TuningError: As `measure`; or the child died, though each config worked alone.
        """
        found: tuple[Measurement, ...] = self.ask("race", tuple(configs), shares=len(configs))
        return found

    def ask(self, method: str, *arguments: Any, shares: int = 1) -> Any:
        """What another method of the measurer returns.

        Args:
            method: Its name.
            arguments: Its arguments; they are pickled.
            shares: How many times the time limit it may take.

        Raises:
            WorkerLostError: The child died.
            TuningError: The method raised an error, or there is no child to ask.
        """
        try:
            return self._ask(method, arguments, self._limit * shares)
        except _ChildDiedError as error:
            state, _, reason = error.args
            message = f"the measuring process {state} in {method}: {reason}"
            raise WorkerLostError(message, (), state) from None

    def start(self) -> None:
        """Starts the child now, where there is none.

        Raises:
            TuningError: The measurer itself cannot be made.
        """
        if self._process is None:
            self._start()

    def set_up(self, method: str, *arguments: Any) -> None:
        """Asks a method of the measurer, and asks it again of every child that is started later,
        in place of what was set up before.

        Args:
            method: Its name.
            arguments: Its arguments; they are pickled.

        Raises:
            TuningError: The child died, or the method raised an error.
        """
        self._set_up = None  # an answer that fails sets nothing up
        self.start()
        self._ask_set_up(method, arguments)
        self._set_up = method, arguments

    def pause(self) -> None:
        """Stops the child and all that it started where they are; time limits run on."""
        self._signal(signal.SIGSTOP)

    def proceed(self) -> None:
        """Lets a child that was paused go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends the child, if there is one."""
        self._kill()

    # ------------------------------------------------------------------------------- the child

    def _ask(self, method: str, arguments: tuple[Any, ...], limit: float) -> Any:
        """The child's answer; a child that says it is spoilt is replaced before the next question.

        Raises:
            _ChildDiedError: There was none.
            TuningError: There is no child to ask.
        """
        self.start()
        answer = self._exchange((method, arguments, limit + _GRACE), limit)
        if answer["spoilt"]:
            self._kill()
        if isinstance(answer["value"], PatternccError):
            raise answer["value"]
        return answer["value"]

    def _ask_set_up(self, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            self._ask(method, arguments, START_LIMIT)
        except _ChildDiedError as error:
            state, _, reason = error.args
            raise TuningError(f"the measuring process {state} in {method}: {reason}") from None

    def _start(self) -> None:
        ours, theirs = Pipe()
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the child)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _STARTER, json.dumps(sys.path), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=self._messages,
            stderr=self._messages,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self._connection = ours
        self.starts += 1
        try:
            answer = self._exchange((self._maker, START_LIMIT + _GRACE), START_LIMIT)
        except _ChildDiedError as error:
            state, _, reason = error.args
            raise TuningError(
                f"the measuring process {state} before its first trial: {reason}"
            ) from None
        trouble = answer["value"]
        if isinstance(trouble, BaseException):
            self._kill()
            if isinstance(trouble, PatternccError):
                raise trouble
            raise TuningError(f"the measuring process cannot work: {trouble}")
        if self._set_up is not None:
            self._ask_set_up(*self._set_up)

    def _exchange(self, question: Any, limit: float) -> Any:
        assert self._connection is not None
        try:
            self._connection.send(question)
            if not self._connection.poll(limit):
                words = self._kill()
                note = f"; last words: {words}" if words else ""
                raise _ChildDiedError("hung", (), f"no answer within {limit:g} s{note}")
            return self._connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            time.sleep(0.01)  # the pipe closes a moment before the process has an exit code
            process = self._process
            with contextlib.suppress(subprocess.TimeoutExpired):
                if process is not None:
                    process.wait(1.0)
            code = process.returncode if process is not None else None
            words = self._kill()
            raise _ChildDiedError(
                "crashed", (), f"{_exit_words(code)}{': ' * bool(words)}{words}"
            ) from None
        except KeyboardInterrupt:
            self._kill()  # its answer would be taken for that of the next question
            raise

    def _signal(self, number: signal.Signals) -> None:
        """Sends a signal to the child and all that it started, also from another thread."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)

    def _kill(self) -> str:
        """Ends the child and all that it started; returns the end of what it wrote."""
        words = ""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._messages is not None:
            words = _last_words(self._messages)
            self._messages.close()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = self._messages = None
        return words


def _exit_words(code: int | None) -> str:
    if code is None:
        return "it closed its pipe"
    if code < 0:
        return f"it died of {signal.Signals(-code).name}"
    return f"it ended with exit code {code}"


def _last_words(messages: IO[bytes]) -> str:
    """The last line of some messages that is not a frame of a traceback."""
    messages.seek(0)
    lines = [line.strip() for line in messages.read().decode("utf-8", "replace").splitlines()]
    told = [line for line in lines if line and not line.startswith(("File ", "Thread "))]
    return told[-1][:_LAST_WORDS] if told else ""
