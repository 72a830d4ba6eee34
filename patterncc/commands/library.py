"""`patterncc library`: the named patterns and their texts."""

import argparse

from rich.text import Text

from patterncc.commands import console
from patterncc.dsl import library, load
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.parser import parse
from patterncc.dsl.suggest import did_you_mean


def run(args: argparse.Namespace) -> int:
    """Lists the library, or prints one of its files."""
    if args.action == "show":
        return _show(args)
    if args.name is not None:
        raise ConfigError(f"`library list` takes no name; to see one: library show {args.name}")
    if args.json:
        console.print_json([_document(name) for name in library.names()])
        return 0
    out = console.output()
    for name in library.names():
        out.print(Text.assemble((name, "bold"), _parameters(name)))
        out.print(Text(f"    {library.summary(name)}"))
        out.print(Text(f"    {library.origin(name)}", "dim"))
    return 0


def _show(args: argparse.Namespace) -> int:
    names = library.names()
    if args.name is None:
        raise ConfigError("`library show` needs the name of a pattern", names)
    if args.name not in names:
        hint = did_you_mean(args.name, names)
        raise ConfigError(f"the library has no `{args.name}`" + (f"; {hint}" if hint else ""))
    if args.json:
        console.print_json({**_document(args.name), "source": library.source(args.name).text})
    else:
        print(library.source(args.name).text, end="")
    return 0


def _document(name: str) -> dict[str, object]:
    pattern = load(name)
    return {
        "name": name,
        "summary": library.summary(name),
        "notes": library.notes(name),
        "origin": library.origin(name),
        "signature": name + _parameters(name),
        "fixed": dict(pattern.fixed),
        "parameters": {parameter.name: parameter.value for parameter in pattern.parameters},
        "text": pattern.text,
    }


def _parameters(name: str) -> str:
    """The parameters as the file declares them, in brackets; "" for none."""
    source = library.source(name)
    declared = parse(source).program.definitions[-1].parameters
    texts = [" ".join(source.excerpt(parameter.span).split()) for parameter in declared]
    return f"({', '.join(texts)})" if texts else ""
