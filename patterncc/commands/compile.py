"""`patterncc compile`: prints or writes the stages from the text to the machine code."""

import argparse
from pathlib import Path

from patterncc.commands import console
from patterncc.commands.inputs import problem_of, read
from patterncc.compilation import Compilation
from patterncc.dsl.errors import ConfigError

ALL = "all"


def run(args: argparse.Namespace) -> int:
    """Prints one stage, or writes all into a folder."""
    source = read(args.pattern)
    sizes = {name: getattr(args, name) for name in ("heads", "kv_heads", "layers")}
    problem = problem_of(args)
    compilation = Compilation(
        source.text,
        name=args.name,
        file=source.file,
        values=dict(args.param),
        problem=problem,
        target=args.target,
        sizes={name: size for name, size in sizes.items() if size is not None},
    )
    if args.emit == ALL:
        return _all(compilation, args)
    with console.progress().status(f"{args.emit} ..."):
        text = compilation.text(args.emit, args.after)
    if args.output is None:
        print(text, end="")
    else:
        Path(args.output).write_text(text, encoding="utf-8")
        print(f"wrote {args.output}")
    return 0


def _all(compilation: Compilation, args: argparse.Namespace) -> int:
    if args.output is None:
        raise ConfigError("--emit all needs a folder: -o FOLDER")
    if args.after is not None:
        raise ConfigError("--after goes with --emit ir; --emit all writes what every pass leaves")
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in compilation.files():
        (folder / name).write_text(text, encoding="utf-8")
        print(f"wrote {folder / name}")
    return 0
