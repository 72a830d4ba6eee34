"""Questions to isl that are sure to end.

isl counts its operations and stops at a budget, but some of what it does it does not count, and
nothing stops it from outside. So a question about a mask with many divisions is asked in a process
of its own, which is ended when it takes too long. Questions about plain masks, nearly all, are
asked here: they take milliseconds. The process is kept for further questions.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import IO, Any, TypeVar

from patterncc.codegen.pieces import TooIntricateError
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.linear import reads_position
from patterncc.dsl.mask import Cover, FloorDiv, Mod, Predicate, walk

T = TypeVar("T")

SECONDS = 5  # of processor time that one question may take
PATIENCE = 4  # times as many seconds may pass, on a machine that is busy
PLAIN = 3  # divisions of positions up to which a question is asked here

_SERVER = "import sys; sys.path[:] = {path!r}; from {module} import serve; serve()"


def ask(bodies: Iterable[Predicate], function: Callable[..., T], /, *args: Any) -> T:
    """Calls a function that asks isl about some masks, and sees to it that it ends.

    Args:
        bodies: The masks, by which is decided where the question is asked.
        function: A function of a module, which asks no further questions this way.
        *args: Its arguments; they and its result must pickle.

    Raises:
        TooIntricateError: It takes too long.
        UnsupportedError: The process for it does not start.
        Exception: What the function raises.
    """
    if sum(map(_divisions, bodies)) <= PLAIN:
        return function(*args)
    result: T = _process.ask(function, args)
    return result


def _divisions(body: Predicate) -> int:
    """How many times a mask divides a position; a cover counts for several."""
    count = 0
    for node in walk(body):
        if isinstance(node, Cover):
            count += PLAIN
        elif isinstance(node, (FloorDiv, Mod)) and reads_position(node):
            count += 1
    return count


class _Process:
    """A process that answers one question at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        with self._lock:
            process = self._started()
            assert process.stdin is not None and process.stdout is not None
            late = threading.Timer(PATIENCE * SECONDS, process.kill)
            late.start()
            try:
                send(process.stdin, (SECONDS, function, args))
                good, answer = pickle.load(process.stdout)
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                self._end()
                raise TooIntricateError(
                    f"this question is too intricate to answer exactly within {SECONDS} seconds"
                ) from error
            except BaseException:  # Ctrl-C: the answer to come belongs to nobody
                self._end()
                raise
            finally:
                late.cancel()
        if good:
            return answer
        raise answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        code = _SERVER.format(path=sys.path, module="patterncc.codegen.facts.question_server")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for who asks
            )
        except OSError as error:
            raise UnsupportedError(
                f"this question needs a process of its own, which does not start: {error}"
            ) from error
        atexit.register(self._end)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):  # what was not sent is of no use
                        pipe.close()
        atexit.unregister(self._end)


def send(pipe: IO[bytes], message: object) -> None:
    """Writes one message, as a whole."""
    pipe.write(pickle.dumps(message))
    pipe.flush()


_process = _Process()


def _forget() -> None:
    """In a fork: the process is the parent's."""
    global _process
    _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
