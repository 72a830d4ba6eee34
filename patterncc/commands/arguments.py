"""Which commands and arguments there are. Loads nothing, so that `--help` is quick."""

import argparse
import math
from collections.abc import Callable

from patterncc import __version__

_PATTERN = "a file, - for standard input, the name of a library pattern, or a pattern's text"
TABLE_LENGTH = 4096  # queries of a pattern with tables, of which each pair may have to be looked at
_DTYPES = ("float16", "bfloat16", "float32", "float64")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; the shell completions are made from it too."""
    parser = argparse.ArgumentParser(
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
    parser.add_argument("files", nargs="+", metavar="FILE", help=_PATTERN)
    _json(parser)


def _fmt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file, or - for standard input")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--write", action="store_true", help="write files back instead of printing")
    mode.add_argument(
        "--check",
        action="store_true",
        help="only say which files would change; exit 1 if any would",
    )


def _explain(parser: argparse.ArgumentParser) -> None:
    _pattern(parser)
    _score(parser)
    _call(parser, q_len=16384, heads=8, layers=12)
    _choice(parser)
    _shape(parser)
    _tiles(parser, "128")
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
        "--target", help="with --cost: a GPU that is not here, such as cuda:90, taken for an H200"
    )
    group.add_argument("--device", help="with --why-config or --cost: cpu, cuda or cuda:N")
    group.add_argument(
        "--phase", default="forward", help="with --why-config or --cost: the phase (forward)"
    )
    _json(parser)


def _plot(parser: argparse.ArgumentParser) -> None:
    _pattern(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="a .png, .svg or .pdf file; else a map in the terminal",
    )
    _call(parser, q_len=256, heads=8, layers=12)
    _choice(parser)
    _tiles(parser, "chosen from the length")
    parser.add_argument("--ascii", action="store_true", help="a map of ASCII characters")


def _compile(parser: argparse.ArgumentParser) -> None:
    _pattern(parser)
    _score(parser)
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
        _size(parser, size, "where the pattern divides by it", None)
    _shape(parser)
    parser.add_argument(
        "--group", type=_count, default=1, metavar="N", help="query heads a key/value head (1)"
    )


def _run(parser: argparse.ArgumentParser) -> None:
    _pattern(parser)
    _score(parser).add_argument(
        "--number",
        action="append",
        default=[],
        type=_real,
        metavar="NAME=X",
        help="a number that they read, such as cap=50; --table NAME=FILE gives a table, which is "
        "drawn else",
    )
    _call(parser, q_len=None, heads=8, layers=1)
    parser.add_argument("--layer", type=_count_or_zero, default=0, metavar="N", help="layer (0)")
    parser.add_argument("--batch", type=_count, default=1, metavar="N", help="batch (1)")
    _shape(parser, dtype=None, head_dim=64)
    parser.add_argument("--device", help="cpu, cuda or cuda:N; CUDA if there is a device")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random input (0)")
    parser.add_argument(
        "--backward",
        action="store_true",
        help="check and time the gradients of query, key, value and score tables, too",
    )
    parser.add_argument(
        "--repeats",
        type=_count,
        default=None,
        metavar="N",
        help="timed calls; as many as fit in a second",
    )
    _json(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="PATTERN", help=_PATTERN)
    parser.add_argument("--name", help="which pattern of the texts; the last one if not given")
    _param(parser, "value of a parameter of the patterns; can be given more than once")
    _table_argument(parser)
    parser.add_argument(
        "--suite",
        metavar="NAME",
        help="instead of patterns: design, short, d64, gqa, batch, packed, library",
    )
    group = parser.add_argument_group("who takes part, and in what")
    group.add_argument(
        "--list-peers", action="store_true", help="say who takes part here, and why others do not"
    )
    group.add_argument("--peers", metavar="LIST", help="such as flex,fa4; all if not given")
    group.add_argument(
        "--phases",
        metavar="LIST",
        help="of forward, backward, both, and fresh: mask, forward and backward of packed documents"
        " (all)",
    )
    group = parser.add_argument_group(
        "the shapes", "of a suite its own; else batch 1, 16 heads, head_dim 128"
    )
    group.add_argument(
        "--shapes",
        metavar="LIST",
        help="batch x heads[:kv_heads] x length x head_dim, 1x32:8x32Kx128",
    )
    group.add_argument(
        "--len", type=_lengths, metavar="LIST", help="tokens (2048 on a CPU, 16384 on a GPU)"
    )
    for size in ("batch", "heads", "kv_heads", "head_dim"):
        _size(group, size, size.replace("_", " "), None)
    _size(group, "layers", "layers of the model", None, "1, or what a pattern needs")
    group.add_argument("--layer", type=_count_or_zero, default=0, metavar="N", help="layer (0)")
    group.add_argument(
        "--dtype", choices=_DTYPES, help="type (float32 on a CPU, bfloat16 on a GPU)"
    )
    group.add_argument("--device", help="cpu, cuda or cuda:N; CUDA if there is a device")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the random input (0)")
    group = parser.add_argument_group("how")
    group.add_argument(
        "--repeats", type=_count, metavar="N", help="rounds of each (5 on a CPU, 10 on a GPU)"
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="for one answer of a process, compiling included (300)",
    )
    group.add_argument(
        "--jobs",
        type=_count,
        metavar="N",
        help="processes that get ready at a time (half the CPUs)",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write the JSON document there, besides the tables"
    )
    parser.add_argument("--plot", metavar="FILE", help="a .png, .svg or .pdf file of bars")
    _json(parser)
    parser.set_defaults(usual_q_len=None, usual_layers=1)


def _diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", metavar="A", help=_PATTERN)
    parser.add_argument("other", metavar="B", help="the pattern to compare it with, likewise")
    parser.add_argument("--name", help="which pattern of A; the last one if not given")
    parser.add_argument("--other-name", metavar="NAME", help="which pattern of B")
    _param(parser, "value of a parameter, in each of the two that has it; can be repeated")
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
        _size(group, size, meaning, None)
    parser.add_argument(
        "--expect",
        choices=("equal", "within", "contains", "disjoint"),
        default="equal",
        help="what A should be to B for exit code 0 (equal)",
    )
    _json(parser)


def _live(parser: argparse.ArgumentParser) -> None:
    _pattern(parser)
    parser.add_argument(
        "--at",
        type=_lengths,
        metavar="LIST",
        default=(1023, 4095, 16383, 65535),
        help="times to count at, such as 1023,64K (1023,4095,16383,65535)",
    )
    parser.add_argument(
        "--page-size", type=_count, default=16, metavar="N", help="keys of a page (16)"
    )
    group = parser.add_argument_group("the model")
    _size(group, "heads", "query heads", 8)
    _size(group, "kv_heads", "key/value heads", None, "as many as query heads")
    _size(group, "layers", "layers of the model", 12)
    group.add_argument("--layer", type=_numbers, metavar="LIST", help="layers to look at")
    group.add_argument("--kv-head", type=_numbers, metavar="LIST", help="heads to look at")
    group.add_argument(
        "--kv-len", type=_count, metavar="N", help="length of all calls to come (any)"
    )
    _json(parser)


def _shard(parser: argparse.ArgumentParser) -> None:
    _pattern(parser)
    parser.add_argument(
        "--ranks", type=_count, required=True, metavar="N", help="ranks that share a sequence"
    )
    parser.add_argument(
        "--placement",
        choices=("contiguous", "zigzag", "striped"),
        default="contiguous",
        help="how tokens are dealt out (contiguous)",
    )
    parser.add_argument(
        "--stripe", type=_count, default=1, metavar="N", help="tokens of a stripe (1)"
    )
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--q-len", type=_count, default=65536, metavar="N", help="tokens of the sequence (65536)"
    )
    _size(group, "heads", "query heads", 8)
    _size(group, "kv_heads", "key/value heads", None, "as many as query heads")
    _size(group, "layers", "layers of the model", 12)
    group.add_argument("--layer", type=_numbers, metavar="LIST", help="layers to look at")
    _shape(parser)
    _json(parser)


def _reach(parser: argparse.ArgumentParser) -> None:
    _pattern(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="a .png, .svg or .pdf file to draw it in"
    )
    group = parser.add_argument_group("the model")
    _size(group, "layers", "layers of the stack", 12)
    group.add_argument(
        "--q-len", type=_count, default=16384, metavar="N", help="tokens of the sequence (16384)"
    )
    _size(group, "heads", "query heads", 8)
    _size(group, "kv_heads", "key/value heads", None, "as many as query heads")
    _json(parser)


def _tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help=_PATTERN)
    parser.add_argument("--name", help="which pattern of the texts; the last one if not given")
    _param(parser, "value of a parameter of the patterns; can be given more than once")
    parser.add_argument("--library", action="store_true", help="tune every library pattern")
    parser.add_argument(
        "--target",
        help="compile the --trials most promising configs for a GPU that is not here, such as "
        "cuda:90, and order them; nothing runs and nothing is kept",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="fit the cost model to the device instead, by a few timed calls",
    )
    parser.add_argument(
        "--phase",
        default="forward",
        metavar="NAMES",
        help="what to tune: forward (the default), grad_query, grad_key_value, several with commas "
        "between, or all",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N; CUDA if there is a device")
    _call(parser, q_len=None, heads=16, layers=1)
    parser.add_argument("--layer", type=_count_or_zero, default=0, metavar="N", help="layer (0)")
    parser.add_argument("--batch", type=_count, default=1, metavar="N", help="batch (1)")
    _shape(parser, dtype=None, head_dim=64)
    group = parser.add_argument_group("the search")
    group.add_argument(
        "--trials", type=_count, default=60, metavar="N", help="configs that are tried (60)"
    )
    group.add_argument(
        "--timeout", type=float, default=300.0, metavar="SECONDS", help="for each pattern (300)"
    )
    group.add_argument(
        "--gain",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="stop when the next ten trials are expected to gain less; 0 to go on (0.01)",
    )
    group.add_argument(
        "--sampler",
        choices=("model", "tpe", "gp", "random"),
        default="model",
        help="what proposes configs: the cost model as corrected by what was timed (model), or "
        "one of Optuna's samplers",
    )
    group.add_argument(
        "--storage",
        metavar="PATH",
        help="journal file, or address of a database, of a study that several processes share",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of input and search (0)")
    parser.add_argument(
        "--flex",
        action=argparse.BooleanOptionalAction,
        help="time compiled FlexAttention once, for comparison; unless told otherwise where one "
        "forward is tuned on a GPU",
    )
    parser.add_argument("--plot", metavar="FILE", help="a .png, .svg or .pdf file of the search")
    _json(parser)


def _cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="?", choices=("list", "show", "export", "import", "clear"), default="list"
    )
    parser.add_argument(
        "argument", nargs="?", metavar="FILE", help="of export and import; of show, a text to find"
    )
    _json(parser)


def _library(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("list", "show"), default="list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the pattern to show")
    _json(parser)


def _doctor(parser: argparse.ArgumentParser) -> None:
    _json(parser)


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "check": ("Finds every mistake in patterns", _check),
    "fmt": ("Prints patterns in the standard form", _fmt),
    "explain": ("Says what a pattern means and what it costs", _explain),
    "plot": ("Draws the mask of a pattern with its tiles", _plot),
    "compile": ("Prints a stage of compilation", _compile),
    "run": ("Runs attention here, checks it and times it", _run),
    "bench": ("Times patterns beside other attention libraries", _bench),
    "diff": ("Compares two patterns in all calls at once", _diff),
    "live": ("Says which keys a cache must keep", _live),
    "shard": ("Plans which keys ranks fetch from each other", _shard),
    "reach": ("Says how far information travels through layers", _reach),
    "tune": ("Finds the fastest configs for patterns here and keeps them", _tune),
    "cache": ("Lists, shows, exports, imports or removes tuned configs", _cache),
    "library": ("Lists the named patterns, or shows one", _library),
    "doctor": ("Says what works on this machine", _doctor),
    "completion": ("Prints the completion script of a shell", _completion),
}


# ------------------------------------------------------------------------------- shared arguments


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _pattern(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", metavar="PATTERN", help=_PATTERN)
    parser.add_argument("--name", help="which pattern of the text; the last one if not given")
    _param(parser, "value of a parameter of the pattern; can be given more than once")


def _score(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
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


def _param(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument(
        "-p",
        "--param",
        action="append",
        default=[],
        type=_parameter,
        metavar="NAME=VALUE",
        help=meaning,
    )


def _call(parser: argparse.ArgumentParser, *, q_len: int | None, heads: int, layers: int) -> None:
    lengths = "4096 on a CPU, 2048 there with tables, 16384 on a GPU"
    if q_len is not None:
        lengths = f"{q_len}, or {min(q_len, TABLE_LENGTH)} for a pattern with tables"
        lengths = lengths if q_len > TABLE_LENGTH else str(q_len)
    parser.set_defaults(usual_q_len=q_len, usual_layers=layers)
    _table_argument(parser)
    group = parser.add_argument_group("the call", "lengths can be written 4096, 64K or 1M")
    group.add_argument("--q-len", type=_count, metavar="N", help=f"queries ({lengths})")
    group.add_argument("--kv-len", type=_count, metavar="N", help="keys (as many as queries)")
    group.add_argument(
        "--q-offset",
        type=_integer,
        metavar="N",
        help="position of the first query (kv_len - q_len)",
    )
    _size(group, "heads", "query heads", heads)
    _size(group, "kv_heads", "key/value heads", None, "as many as query heads")
    _size(group, "layers", "layers of the model", None, f"{layers}, or what a pattern needs")


def _table_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        type=_table,
        metavar="NAME=FILE",
        help="a table of the pattern: a .npy or .json file, or a list such as doc=0,100,300; a "
        "library pattern has an example",
    )


def _size(
    parser: argparse._ActionsContainer,
    name: str,
    meaning: str,
    default: int | None,
    otherwise: str = "",
) -> None:
    note = otherwise if default is None else str(default)
    text = f"{meaning} ({note})" if note else meaning
    option = f"--{name.replace('_', '-')}"
    parser.add_argument(option, type=_count, default=default, metavar="N", help=text)


def _choice(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "which masks", "lists such as 0,3,5 or 0..8, where the end is left out as in the language"
    )
    group.add_argument("--layer", type=_numbers, metavar="LIST", help="layers to look at")
    group.add_argument("--head", type=_numbers, metavar="LIST", help="query heads to look at")


def _shape(
    parser: argparse.ArgumentParser, dtype: str | None = "bfloat16", head_dim: int = 128
) -> None:
    group = parser.add_argument_group("the tensors")
    _size(group, "head_dim", "size of a head", head_dim)
    _size(group, "value_head_dim", "size of a head of the values", None, "head_dim")
    note = dtype or "float32 on a CPU, bfloat16 on a GPU"
    group.add_argument("--dtype", choices=_DTYPES, default=dtype, help=f"type ({note})")


def _tiles(parser: argparse.ArgumentParser, default: str) -> None:
    group = parser.add_argument_group("the tiles")
    for option, meaning in (("--block-q", "rows"), ("--block-k", "keys")):
        group.add_argument(
            option, type=_count, metavar="N", help=f"{meaning} of a tile ({default})"
        )


# ----------------------------------------------------------------------------- values of arguments


def _integer(text: str) -> int:
    """An integer, perhaps in K or M of 1024."""
    sizes = {"K": 1 << 10, "M": 1 << 20}
    factor = sizes.get(text[-1:].upper(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        return int(digits) * factor
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer; write 4096, 64K or 1M") from None


def _count(text: str) -> int:
    number = _integer(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be 1 or more")
    return number


def _count_or_zero(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _parameter(text: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, _integer(value)


def _real(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not equals or not name.isidentifier() or not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=X with a finite number X")
    return name, number


def _lengths(text: str) -> tuple[int, ...]:
    """`1023,64K`: the numbers, in the order given."""
    return tuple(map(_integer, text.split(",")))


def _table(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE or NAME=LIST")
    return name, value


def _numbers(text: str) -> tuple[int, ...]:
    """`0,3,5` and `0..8`: the numbers, in the order given."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        try:
            numbers += range(int(first), int(last)) if dots else [int(part)]
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list such as 0,3,5 or 0..8"
            ) from None
    if not numbers or min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} names no layers or heads")
    return tuple(dict.fromkeys(numbers))
