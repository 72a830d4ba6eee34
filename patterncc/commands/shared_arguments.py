"""Arguments that several commands take."""

import argparse

from patterncc.commands.argument_types import (
    read_count,
    read_integer,
    read_numbers,
    read_parameter,
    read_table,
)

PATTERN_HELP = "a file, - for standard input, the name of a library pattern, or a pattern's text"
TABLE_LENGTH = 4096  # queries of a pattern with tables, of which each pair may have to be looked at
DTYPES = ("float16", "bfloat16", "float32", "float64")


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def add_deterministic(parser: argparse.ArgumentParser, meaning: str) -> None:
    """`--no-deterministic`."""
    parser.add_argument(
        "--no-deterministic", dest="deterministic", action="store_false", help=meaning
    )


def add_isolate(parser: argparse.ArgumentParser) -> None:
    """`--isolate` and `--no-isolate`; None where neither is given."""
    parser.add_argument(
        "--isolate",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let NaN and infinity reach only rows and keys that see them on GPUs, too "
        "(as PATTERNCC_ISOLATE says)",
    )


def add_pattern(parser: argparse.ArgumentParser) -> None:
    """One pattern: its text, file or name, which pattern of it, and its parameters."""
    parser.add_argument("pattern", metavar="PATTERN", help=PATTERN_HELP)
    parser.add_argument("--name", help="which pattern of the text; the last one if not given")
    add_param(parser, "value of a parameter of the pattern; can be given more than once")


def add_score(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """`--score` and `--sink`, and the group they are in."""
    group = parser.add_argument_group("score terms", "what becomes of the scores: docs/scores.md")
    group.add_argument(
        "--score",
        metavar="TERM",
        help="logit of a visible pair, such as 'softcap(score, 50) + alibi(slopes)'",
    )
    group.add_argument(
        "--sink", metavar="TERM", help="logit of one more key of value 0, such as 'sinks[head]'"
    )
    return group


def add_param(parser: argparse.ArgumentParser, meaning: str) -> None:
    """`--param`, the values of parameters."""
    parser.add_argument(
        "-p",
        "--param",
        action="append",
        default=[],
        type=read_parameter,
        metavar="NAME=VALUE",
        help=meaning,
    )


def add_call(
    parser: argparse.ArgumentParser, *, q_len: int | None, heads: int, layers: int
) -> None:
    """The lengths and sizes of a call, and its tables; `q_len` None takes what suits the device."""
    lengths = "4096 on a CPU, 2048 there with tables, 16384 on a GPU"
    if q_len is not None:
        lengths = f"{q_len}, or {min(q_len, TABLE_LENGTH)} for a pattern with tables"
        lengths = lengths if q_len > TABLE_LENGTH else str(q_len)
    parser.set_defaults(usual_q_len=q_len, usual_layers=layers)
    add_tables(parser)
    group = parser.add_argument_group("the call", "lengths can be written 4096, 64K or 1M")
    group.add_argument(
        "--q-len", "--len", type=read_count, metavar="N", help=f"queries ({lengths})"
    )
    group.add_argument("--kv-len", type=read_count, metavar="N", help="keys (as many as queries)")
    group.add_argument(
        "--q-offset",
        type=read_integer,
        metavar="N",
        help="position of the first query (kv_len - q_len)",
    )
    add_size(group, "heads", "query heads", heads)
    add_size(group, "kv_heads", "key/value heads", None, "as many as query heads")
    add_size(group, "layers", "layers of the model", None, f"{layers}, or what a pattern needs")


def add_tables(parser: argparse.ArgumentParser) -> None:
    """`--table`, the tables of a pattern."""
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        type=read_table,
        metavar="NAME=FILE",
        help="a table of the pattern: a .npy or .json file, or a list such as doc=0,100,300; a "
        "library pattern has an example",
    )


def add_size(
    parser: argparse._ActionsContainer,
    name: str,
    meaning: str,
    default: int | None,
    otherwise: str = "",
) -> None:
    """`--NAME N`; `otherwise` says what holds where there is no default."""
    note = otherwise if default is None else str(default)
    text = f"{meaning} ({note})" if note else meaning
    option = f"--{name.replace('_', '-')}"
    parser.add_argument(option, type=read_count, default=default, metavar="N", help=text)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Which layers and heads are looked at."""
    group = parser.add_argument_group(
        "which masks", "lists such as 0,3,5 or 0..8, where the end is left out as in the language"
    )
    group.add_argument("--layer", type=read_numbers, metavar="LIST", help="layers to look at")
    group.add_argument("--head", type=read_numbers, metavar="LIST", help="query heads to look at")


def add_shape(
    parser: argparse.ArgumentParser, dtype: str | None = "bfloat16", head_dim: int | None = 128
) -> None:
    """Head dimensions and dtype; None takes what suits the device."""
    group = parser.add_argument_group("the tensors")
    add_size(group, "head_dim", "size of a head", head_dim, "64 on a CPU, 128 on a GPU")
    add_size(group, "value_head_dim", "size of a head of the values", None, "head_dim")
    note = dtype or "float32 on a CPU, bfloat16 on a GPU"
    group.add_argument("--dtype", choices=DTYPES, default=dtype, help=f"type ({note})")


def add_tiles(parser: argparse.ArgumentParser, default: str) -> None:
    """`--block-q` and `--block-k`."""
    group = parser.add_argument_group("the tiles")
    for option, meaning in (("--block-q", "rows"), ("--block-k", "keys")):
        group.add_argument(
            option, type=read_count, metavar="N", help=f"{meaning} of a tile ({default})"
        )
