"""Which commands there are, and the arguments of the smaller ones.

Like the files of arguments that it imports, it loads nothing, so that `--help` is quick.
"""

import argparse
from collections.abc import Callable

from patterncc import __version__
from patterncc.commands.argument_types import read_count
from patterncc.commands.fact_arguments import (
    add_arguments_of_diff,
    add_arguments_of_explain,
    add_arguments_of_live,
    add_arguments_of_plot,
    add_arguments_of_reach,
    add_arguments_of_shard,
)
from patterncc.commands.measuring_arguments import (
    add_arguments_of_bench,
    add_arguments_of_run,
    add_arguments_of_tune,
)
from patterncc.commands.parser import Parser
from patterncc.commands.shared_arguments import (
    PATTERN_HELP,
    add_json,
    add_pattern,
    add_score,
    add_shape,
    add_size,
)


def build_parser() -> Parser:
    """The parser of the whole command line; the shell completions are made from it too."""
    parser = Parser(
        prog="patterncc",
        description="Compiles one-line sparse attention patterns to fused kernels.",
        epilog="`patterncc COMMAND --help` says what a command takes.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"patterncc {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, (summary, configure) in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=f"{summary}.", allow_abbrev=False
        )
        configure(command)
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=PATTERN_HELP)
    add_json(parser)


def _fmt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file, or - for standard input")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--write", action="store_true", help="write files back instead of printing")
    mode.add_argument(
        "--check",
        action="store_true",
        help="only say which files would change; exit 1 if any would",
    )


def _compile(parser: argparse.ArgumentParser) -> None:
    add_pattern(parser)
    add_score(parser)
    parser.add_argument(
        "--emit",
        default="ir",
        metavar="STAGE",
        help="stage to print: ast, mask, ir (default), triton, ttir, ttgir, ptx, amdgcn; or all",
    )
    parser.add_argument(
        "--after", metavar="PASS", help="with --emit ir: the pass after which to look"
    )
    parser.add_argument(
        "--target",
        default="cuda:90",
        help="what to compile for, present or not: cuda:80, cuda:90 (default), hip:gfx942, ...",
    )
    parser.add_argument(
        "-o", "--output", metavar="PATH", help="file to write; with --emit all, folder"
    )
    for size in ("heads", "kv_heads", "layers"):
        add_size(parser, size, "where the pattern divides by it", None)
    add_shape(parser)
    parser.add_argument(
        "--group", type=read_count, default=1, metavar="N", help="query heads a key/value head (1)"
    )


def _cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="?", choices=("list", "show", "export", "import", "clear"), default="list"
    )
    parser.add_argument(
        "argument", nargs="?", metavar="FILE", help="of export and import; of show, a text to find"
    )
    add_json(parser)


def _library(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("list", "show"), default="list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the pattern to show")
    add_json(parser)


def _doctor(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "check": ("Finds every mistake in patterns", _check),
    "fmt": ("Prints patterns in the standard form", _fmt),
    "explain": ("Says what a pattern means and what it costs", add_arguments_of_explain),
    "plot": ("Draws the mask of a pattern with its tiles", add_arguments_of_plot),
    "compile": ("Prints a stage of compilation", _compile),
    "run": ("Runs attention here, checks it and times it", add_arguments_of_run),
    "bench": ("Times patterns beside other attention libraries", add_arguments_of_bench),
    "diff": ("Compares two patterns in all calls at once", add_arguments_of_diff),
    "live": ("Says which keys a cache must keep", add_arguments_of_live),
    "shard": ("Plans which keys ranks fetch from each other", add_arguments_of_shard),
    "reach": ("Says how far information travels through layers", add_arguments_of_reach),
    "tune": ("Finds the fastest configs for patterns here and keeps them", add_arguments_of_tune),
    "cache": ("Lists, shows, exports, imports or removes tuned configs", _cache),
    "library": ("Lists the named patterns, or shows one", _library),
    "doctor": ("Says what works on this machine", _doctor),
    "completion": ("Prints the completion script of a shell", _completion),
}
