"""The arguments of the commands that say what a pattern means: nothing runs."""

import argparse

from patterncc.commands.argument_types import read_count, read_lengths, read_numbers
from patterncc.commands.shared_arguments import (
    PATTERN_HELP,
    add_call,
    add_choice,
    add_deterministic,
    add_isolate,
    add_json,
    add_param,
    add_pattern,
    add_score,
    add_shape,
    add_size,
    add_tiles,
)


def add_arguments_of_explain(parser: argparse.ArgumentParser) -> None:
    """Of `patterncc explain`."""
    add_pattern(parser)
    add_score(parser)
    add_call(parser, q_len=16384, heads=8, layers=12)
    add_choice(parser)
    add_shape(parser)
    add_tiles(parser, "128")
    add_deterministic(parser, "say how gradients are computed that need not be deterministic, too")
    add_isolate(parser)
    group = parser.add_argument_group("the configuration")
    group.add_argument(
        "--why-config",
        action="store_true",
        help="say which configuration the call would run with here, and why, instead",
    )
    group.add_argument(
        "--cost",
        action="store_true",
        help="print what the cost model expects of the call, as formulas with numbers, instead",
    )
    group.add_argument(
        "--target",
        help="with --why-config or --cost: a GPU that is not here, such as cuda:90, taken for an "
        "H200",
    )
    group.add_argument("--device", help="with --why-config or --cost: cpu, cuda or cuda:N")
    group.add_argument(
        "--phase", default="forward", help="with --why-config or --cost: the phase (forward)"
    )
    add_json(parser)


def add_arguments_of_plot(parser: argparse.ArgumentParser) -> None:
    """Of `patterncc plot`."""
    add_pattern(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="a .png, .svg or .pdf file; else a map in the terminal",
    )
    add_call(parser, q_len=256, heads=8, layers=12)
    add_choice(parser)
    add_tiles(parser, "chosen from the length")
    parser.add_argument("--ascii", action="store_true", help="a map of ASCII characters")


def add_arguments_of_diff(parser: argparse.ArgumentParser) -> None:
    """Of `patterncc diff`."""
    parser.add_argument("pattern", metavar="A", help=PATTERN_HELP)
    parser.add_argument("other", metavar="B", help="the pattern to compare it with, likewise")
    parser.add_argument("--name", help="which pattern of A; the last one if not given")
    parser.add_argument("--other-name", metavar="NAME", help="which pattern of B")
    add_param(parser, "value of a parameter, in each of the two that has it; can be repeated")
    parser.add_argument(
        "--defaults",
        action="store_true",
        help="run-time numbers have their defaults; else they stand for all values",
    )
    group = parser.add_argument_group("the call", "what is not given stands for all values")
    for size, meaning in (
        ("heads", "query heads"),
        ("kv_heads", "key/value heads"),
        ("layers", "layers of the model"),
    ):
        add_size(group, size, meaning, None)
    parser.add_argument(
        "--expect",
        choices=("equal", "within", "contains", "disjoint"),
        default="equal",
        help="what A should be to B for exit code 0 (equal)",
    )
    add_json(parser)


def add_arguments_of_live(parser: argparse.ArgumentParser) -> None:
    """Of `patterncc live`."""
    add_pattern(parser)
    parser.add_argument(
        "--at",
        type=read_lengths,
        metavar="LIST",
        default=(1023, 4095, 16383, 65535),
        help="times to count at, such as 1023,64K (1023,4095,16383,65535)",
    )
    parser.add_argument(
        "--page-size", type=read_count, default=16, metavar="N", help="keys of a page (16)"
    )
    group = parser.add_argument_group("the model")
    add_size(group, "heads", "query heads", 8)
    add_size(group, "kv_heads", "key/value heads", None, "as many as query heads")
    add_size(group, "layers", "layers of the model", 12)
    group.add_argument("--layer", type=read_numbers, metavar="LIST", help="layers to look at")
    group.add_argument("--kv-head", type=read_numbers, metavar="LIST", help="heads to look at")
    group.add_argument(
        "--kv-len", type=read_count, metavar="N", help="length of all calls to come (any)"
    )
    add_json(parser)


def add_arguments_of_shard(parser: argparse.ArgumentParser) -> None:
    """Of `patterncc shard`."""
    add_pattern(parser)
    parser.add_argument(
        "--ranks", type=read_count, required=True, metavar="N", help="ranks that share a sequence"
    )
    parser.add_argument(
        "--placement",
        choices=("contiguous", "zigzag", "striped"),
        default="contiguous",
        help="how tokens are dealt out (contiguous)",
    )
    parser.add_argument(
        "--stripe", type=read_count, default=1, metavar="N", help="tokens of a stripe (1)"
    )
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--q-len",
        "--len",
        type=read_count,
        default=65536,
        metavar="N",
        help="tokens of the sequence (65536)",
    )
    add_size(group, "heads", "query heads", 8)
    add_size(group, "kv_heads", "key/value heads", None, "as many as query heads")
    add_size(group, "layers", "layers of the model", 12)
    group.add_argument("--layer", type=read_numbers, metavar="LIST", help="layers to look at")
    add_shape(parser)
    add_json(parser)


def add_arguments_of_reach(parser: argparse.ArgumentParser) -> None:
    """Of `patterncc reach`."""
    add_pattern(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="a .png, .svg or .pdf file to draw it in"
    )
    group = parser.add_argument_group("the model")
    add_size(group, "layers", "layers of the stack", 12)
    group.add_argument(
        "--q-len",
        "--len",
        type=read_count,
        default=16384,
        metavar="N",
        help="tokens of the sequence (16384)",
    )
    add_size(group, "heads", "query heads", 8)
    add_size(group, "kv_heads", "key/value heads", None, "as many as query heads")
    add_json(parser)
