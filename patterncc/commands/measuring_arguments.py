"""The arguments of the commands that run attention and time it."""

import argparse

from patterncc.commands.argument_types import (
    read_count,
    read_count_or_zero,
    read_lengths,
    read_real,
)
from patterncc.commands.shared_arguments import (
    DTYPES,
    PATTERN_HELP,
    add_call,
    add_deterministic,
    add_isolate,
    add_json,
    add_param,
    add_pattern,
    add_score,
    add_shape,
    add_size,
    add_tables,
)


def add_arguments_of_run(parser: argparse.ArgumentParser) -> None:
    """Of `patterncc run`."""
    add_pattern(parser)
    add_score(parser).add_argument(
        "--number",
        action="append",
        default=[],
        type=read_real,
        metavar="NAME=X",
        help="a number that they read, such as cap=50; --table NAME=FILE gives a table, which is "
        "drawn else",
    )
    add_call(parser, q_len=None, heads=8, layers=1)
    parser.add_argument(
        "--layer", type=read_count_or_zero, default=0, metavar="N", help="layer (0)"
    )
    parser.add_argument("--batch", type=read_count, default=1, metavar="N", help="batch (1)")
    add_shape(parser, dtype=None, head_dim=64)
    parser.add_argument("--device", help="cpu, cuda or cuda:N; CUDA if there is a device")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random input (0)")
    parser.add_argument(
        "--backward",
        action="store_true",
        help="check and time the gradients of query, key, value and score tables, too",
    )
    add_deterministic(parser, "let gradients differ in their last bits from call to call")
    add_isolate(parser)
    parser.add_argument(
        "--repeats",
        type=read_count,
        default=None,
        metavar="N",
        help="timed calls; as many as fit in a second",
    )
    add_json(parser)


def add_arguments_of_bench(parser: argparse.ArgumentParser) -> None:
    """Of `patterncc bench`."""
    parser.add_argument("files", nargs="*", metavar="PATTERN", help=PATTERN_HELP)
    parser.add_argument("--name", help="which pattern of the texts; the last one if not given")
    add_param(parser, "value of a parameter of the patterns; can be given more than once")
    add_tables(parser)
    parser.add_argument(
        "--suite",
        metavar="NAME",
        help="instead of patterns: design, short, d64, gqa, batch, packed, library",
    )
    parser.add_argument(
        "--only", metavar="LIST", help="of a suite these patterns alone, such as causal,nsa"
    )
    group = parser.add_argument_group("who takes part, and in what")
    group.add_argument(
        "--list-peers", action="store_true", help="say who takes part here, and why others do not"
    )
    group.add_argument(
        "--peers", metavar="LIST", help="such as flex,fa4; those of the suite, or all"
    )
    group.add_argument(
        "--phases",
        metavar="LIST",
        help="of forward, backward, both, and fresh: mask, forward and backward of packed documents"
        " (those of the suite, or all)",
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
        "--len", type=read_lengths, metavar="LIST", help="tokens (2048 on a CPU, 16384 on a GPU)"
    )
    for size in ("batch", "heads", "kv_heads", "head_dim"):
        add_size(group, size, size.replace("_", " "), None)
    add_size(group, "layers", "layers of the model", None, "1, or what a pattern needs")
    group.add_argument("--layer", type=read_count_or_zero, default=0, metavar="N", help="layer (0)")
    group.add_argument("--dtype", choices=DTYPES, help="type (float32 on a CPU, bfloat16 on a GPU)")
    group.add_argument("--device", help="cpu, cuda or cuda:N; CUDA if there is a device")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the random input (0)")
    group = parser.add_argument_group("how")
    group.add_argument(
        "--repeats", type=read_count, metavar="N", help="rounds of each (5 on a CPU, 10 on a GPU)"
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
        type=read_count,
        metavar="N",
        help="processes that get ready at a time (half the CPUs)",
    )
    group.add_argument(
        "--within",
        type=float,
        metavar="SECONDS",
        help="begin no pattern after that time; those left are named, and the exit code is 1",
    )
    group.add_argument(
        "--resume",
        metavar="FILE",
        help="keep each result there as it comes, and measure only what is not there yet",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write the JSON document there, besides the tables"
    )
    parser.add_argument("--plot", metavar="FILE", help="a .png, .svg or .pdf file of bars")
    add_json(parser)
    parser.set_defaults(usual_q_len=None, usual_layers=1)


def add_arguments_of_tune(parser: argparse.ArgumentParser) -> None:
    """Of `patterncc tune`."""
    parser.add_argument("files", nargs="*", metavar="FILE", help=PATTERN_HELP)
    parser.add_argument("--name", help="which pattern of the texts; the last one if not given")
    add_param(parser, "value of a parameter of the patterns; can be given more than once")
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
    add_call(parser, q_len=None, heads=16, layers=1)
    parser.add_argument(
        "--layer", type=read_count_or_zero, default=0, metavar="N", help="layer (0)"
    )
    parser.add_argument("--batch", type=read_count, default=1, metavar="N", help="batch (1)")
    add_shape(parser, dtype=None, head_dim=None)
    group = parser.add_argument_group("the search")
    group.add_argument(
        "--trials", type=read_count, default=60, metavar="N", help="configs that are tried (60)"
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="for each pattern and phase (300)",
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
    add_json(parser)
