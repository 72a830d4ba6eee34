"""The entry of the command line: runs a command, and says what becomes of errors.

Loads neither torch nor any command until one runs, so that `--help` is quick. Exit codes: 0; 1 for
an error of a pattern or a wrong result; 2 for wrong usage; 130 after Ctrl-C.
"""

import importlib
import sys
import traceback
import warnings
from collections.abc import Sequence

from patterncc.commands.arguments import build_parser
from patterncc.dsl.errors import ArgumentError, ConfigError, PatternccError
from patterncc.settings import settings

_usual_format = warnings.formatwarning

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    Args:
        argv: The arguments; those of the process if not given.
    """
    try:
        parser = build_parser()
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            parser.prog += f" {args.command}"
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    except SystemExit as end:  # --help, --version and wrong usage
        return end.code if isinstance(end.code, int) else USAGE
    warnings.formatwarning = _warning
    try:
        command = importlib.import_module(f"patterncc.commands.{args.command}")
        code: int = command.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever reads has seen enough. Python would complain once more when it closes the stream.
        sys.stdout = None
        return OK
    except Exception as error:
        if args.debug or _debugging():
            traceback.print_exc()
            return _exit_code(error)
        return _report(error)


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning as a command prints it: without the line of code it comes from, if it is ours."""
    if category.__module__.startswith("patterncc."):
        return f"warning: {message}\n"
    return _usual_format(message, category, filename, lineno, line)


def _debugging() -> bool:
    try:
        return settings().debug
    except ConfigError:  # a variable is set to something else: it may be the error to report
        return False


def _exit_code(error: Exception) -> int:
    return USAGE if isinstance(error, (ArgumentError, ConfigError, OSError)) else FAILED


def _report(error: Exception) -> int:
    """Says what went wrong in the words of the error, without a traceback."""
    if isinstance(error, PatternccError):
        text = str(error)
        if not text.startswith("error["):  # a diagnostic has its own heading
            text = f"error: {text}"
    elif isinstance(error, OSError):
        text = f"error: {error.filename or ''}: {error.strerror or error}"
    else:
        text = f"error: {type(error).__name__}: {error}\n"
        text += "  = note: this is a bug in patterncc, please report it with the output of --debug"
    print(text, file=sys.stderr)
    return _exit_code(error)
