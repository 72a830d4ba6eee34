"""The process that `codegen.questions` asks: reads calls from standard input, answers on standard
output.
"""

from __future__ import annotations

import os
import pickle
import sys

from patterncc.codegen.facts.questions import send

try:
    import resource
except ImportError:  # not a Unix: whoever asks ends the process
    resource = None  # type: ignore[assignment]


def serve() -> None:
    """Answers until standard input ends: `(True, result)` or `(False, exception)`."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else may write there
    while True:
        try:
            seconds, function, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _limit(seconds)
        try:
            message = (True, function(*args))
        except Exception as error:
            message = (False, error)
        send(answers, message)


def _limit(seconds: int) -> None:
    """Has the system end this process after some more seconds of processor time, even if nobody is
    left who asks.
    """
    if resource is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        end = int(used.ru_utime + used.ru_stime) + 1 + seconds
        if most == resource.RLIM_INFINITY or end < most:
            resource.setrlimit(resource.RLIMIT_CPU, (end, most))
