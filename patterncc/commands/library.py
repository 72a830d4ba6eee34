"""`patterncc library`: the named patterns and their texts."""

import argparse

from rich.table import Table

from patterncc.commands import console
from patterncc.dsl import library, load
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.pattern import Pattern
from patterncc.dsl.suggest import did_you_mean


def run(args: argparse.Namespace) -> int:
    """Lists the library, or prints one of its files."""
    if args.action == "show":
        return _show(args)
    if args.name is not None:
        raise ConfigError(
            f"`library list` takes no name; for one pattern: library show {args.name}"
        )
    patterns = {name: load(name) for name in library.names()}
    if args.json:
        console.print_json(
            [
                {"name": name, "summary": library.summary(name), **_numbers(patterns[name])}
                for name in patterns
            ]
        )
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, pattern in patterns.items():
        table.add_row(f"[bold]{name}[/]({_parameters(pattern)})", library.summary(name))
    console.output().print(table)
    return 0


def _show(args: argparse.Namespace) -> int:
    names = library.names()
    if args.name is None:
        raise ConfigError("`library show` needs the name of a pattern", names)
    if args.name not in names:
        hint = did_you_mean(args.name, names)
        raise ConfigError(
            f"the library has no `{args.name}`" + (f": {hint}" if hint else ""), names
        )
    source = library.source(args.name)
    if args.json:
        pattern = load(args.name)
        document = {"name": args.name, "summary": library.summary(args.name)}
        console.print_json({**document, **_numbers(pattern), "source": source.text})
    else:
        print(source.text, end="")
    return 0


def _numbers(pattern: Pattern) -> dict[str, object]:
    return {
        "fixed": dict(pattern.fixed),
        "parameters": {parameter.name: parameter.value for parameter in pattern.parameters},
        "text": pattern.text,
    }


def _parameters(pattern: Pattern) -> str:
    fixed = [f"{name} = {value}" for name, value in pattern.fixed]
    rest = [p.name if p.value is None else f"{p.name} = {p.value}" for p in pattern.parameters]
    return ", ".join([*fixed, *rest])
