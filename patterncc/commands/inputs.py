"""What commands share: reading a pattern argument, and the call it is looked at with."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from patterncc.call import Call
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.pattern import Pattern

STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True)
class Text:
    """A text to read a pattern from.

    Attributes:
        text: The text itself, or the name of a library pattern.
        file: What messages call it; `None` for a text given as an argument.
    """

    text: str
    file: str | None


def read(argument: str) -> Text:
    """Reads what an argument names: `-`, a file, or else the argument is the text.

    A file is what ends in `.pat` or exists.

    Raises:
        OSError: The file cannot be read.
    """
    if argument == STANDARD_INPUT or argument.endswith(".pat") or _exists(argument):
        return read_file(argument)
    return Text(argument, None)


def read_file(argument: str) -> Text:
    """Reads a file, or standard input for `-`.

    Raises:
        OSError: The file cannot be read.
    """
    if argument == STANDARD_INPUT:
        return Text(_decoded(sys.stdin.buffer.read(), "standard input"), "<stdin>")
    return Text(_decoded(Path(argument).read_bytes(), argument), argument)


def _exists(argument: str) -> bool:
    try:
        return Path(argument).is_file()
    except (OSError, ValueError):  # too long, or with characters that no path has
        return False


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OSError(0, f"not UTF-8 at byte {error.start}", name) from None


def pattern_of(args: argparse.Namespace) -> Pattern:
    """The pattern of a command line, with the values of `-p`.

    Raises:
        PatternError: The text or a value is wrong.
        OSError: The file cannot be read.
    """
    source = read(args.pattern)
    return load(source.text, name=args.name, file=source.file, **dict(args.param))


def call_of(pattern: Pattern, args: argparse.Namespace) -> Call:
    """The call of a command line.

    Raises:
        ConfigError: A size cannot be, or there is no such layer or head.
    """
    for name, size in (("layer", args.layers), ("head", args.heads)):
        numbers = getattr(args, name, None)
        chosen = [numbers] if isinstance(numbers, int) else numbers or []
        if chosen and max(chosen) >= size:
            raise ConfigError(f"--{name} {max(chosen)}: there are {size}, from 0; see --{name}s")
    return Call.of(
        pattern,
        args.q_len,
        args.kv_len,
        args.q_offset,
        heads=args.heads,
        kv_heads=args.kv_heads,
        layers=args.layers,
    )


def problem_of(args: argparse.Namespace) -> Problem:
    """The shape class of a command line."""
    value_head_dim = args.value_head_dim or args.head_dim
    return Problem(args.dtype, args.head_dim, value_head_dim)
