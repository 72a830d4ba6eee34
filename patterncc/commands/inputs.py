"""What commands share: reading a pattern argument, and the call it is looked at with."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from patterncc import example_values, table_values
from patterncc.call import Call
from patterncc.codegen.problem import Problem
from patterncc.commands.shared_arguments import TABLE_LENGTH
from patterncc.dsl import library, load
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.pattern import Pattern
from patterncc.dsl.score.terms import ScoreTerms, load_terms
from patterncc.example_values import USUAL_LAYERS, Example
from patterncc.score_example import Scores
from patterncc.score_example import scores_of as example_scores
from patterncc.settings import isolates

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
    """The call of a command line, with its tables.

    A library pattern's tables and numbers that were not given are those of its example.

    Raises:
        ConfigError: A size cannot be, there is no such layer or head, or a table is wrong.
        OSError: The file of a table cannot be read.
    """
    library_name = _library_name(args)
    args.layers = args.layers or USUAL_LAYERS.get(library_name, args.usual_layers)
    if args.q_len is None:
        usual = args.usual_q_len or TABLE_LENGTH
        args.q_len = min(usual, TABLE_LENGTH) if pattern.tables else usual
    for name, size in (("layer", args.layers), ("head", args.heads)):
        numbers = getattr(args, name, None)
        chosen = [numbers] if isinstance(numbers, int) else numbers or []
        if chosen and max(chosen) >= size:
            raise ConfigError(f"--{name} {max(chosen)}: there are {size}, from 0; see --{name}s")
    sizes = {
        "heads": args.heads,
        "kv_heads": args.kv_heads or args.heads,
        "layers": args.layers,
        "kv_len": args.kv_len or args.q_len,
        "batch": getattr(args, "batch", 1),
    }
    of_score = terms_of(args).tables
    given = {
        name: table_values.read(name, text) for name, text in args.table if name not in of_score
    }
    tables = table_values.check(pattern, given, sizes)
    seed = getattr(args, "seed", 0)
    found = example_values.example(library_name, pattern, sizes, seed) or Example()
    numbers = {name: found.numbers[name] for name in pattern.open_numbers if name in found.numbers}
    if numbers:
        pattern = load(library_name, **{**dict(args.param), **numbers})
    added = {name: table for name, table in found.tables.items() if name not in tables}
    return Call.of(
        pattern,
        args.q_len,
        args.kv_len,
        args.q_offset,
        heads=args.heads,
        kv_heads=args.kv_heads,
        layers=args.layers,
        tables=tables | added,
        examples=dict.fromkeys([*numbers, *added], f"an example, seed {seed}"),
    )


def terms_of(args: argparse.Namespace) -> ScoreTerms:
    """The score terms of a command line.

    Raises:
        PatternError: A text is wrong.
    """
    return load_terms(getattr(args, "score", None), getattr(args, "sink", None))


def scores_of(args: argparse.Namespace, call: Call) -> Scores:
    """The score terms of a command line with what they read; tables not given are drawn.

    Raises:
        PatternError: A text is wrong.
        ConfigError: A number or a table is missing, unknown or wrong.
        OSError: The file of a table cannot be read.
    """
    terms = terms_of(args)
    tables = {
        name: table_values.read_real(name, text)
        for name, text in args.table
        if name in terms.tables
    }
    return example_scores(terms, call, dict(args.number), tables, batch=args.batch, seed=args.seed)


class MissingTableError(ConfigError):
    """A pattern reads a table that the command line does not give."""


def require_tables(call: Call) -> None:
    """Checks that there is a table for each that the pattern reads.

    Raises:
        MissingTableError: There is none for one.
    """
    missing = [table.name for table in call.pattern.tables if table.name not in call.tables]
    if missing:
        names = ", ".join(f"`{name}`" for name in missing)
        raise MissingTableError(f"no table was given for {names}; --table {missing[0]}=FILE is one")


def _library_name(args: argparse.Namespace) -> str:
    """The library pattern that the command line names; "" for another text."""
    source = read(args.pattern) if args.pattern in library.names() else None
    return args.pattern if source is not None and source.file is None else ""


def problem_of(args: argparse.Namespace) -> Problem:
    """The shape class of a command line."""
    value_head_dim = args.value_head_dim or args.head_dim
    asked = isolates(getattr(args, "isolate", None))
    terms = terms_of(args)
    return Problem(args.dtype, args.head_dim, value_head_dim, terms=terms, isolates=asked)
