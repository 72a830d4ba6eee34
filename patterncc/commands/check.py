"""`patterncc check`: parses and types patterns, and reports every mistake."""

import argparse
from typing import Any

from rich.text import Text as Line

from patterncc.commands import console
from patterncc.commands.inputs import read
from patterncc.dsl import diagnose
from patterncc.dsl.check import Checked
from patterncc.dsl.errors import Diagnostic


def run(args: argparse.Namespace) -> int:
    """Checks every file; 1 if any has an error."""
    documents = []
    failed = False
    out = console.output()
    for name in args.files:
        source = read(name)
        checked = diagnose(source.text, file=source.file)
        failed = failed or bool(checked.errors)
        if args.json:
            documents.append(_document(name, checked))
            continue
        for diagnostic in checked.errors:
            out.print(coloured(diagnostic, "error"), end="\n\n")
        for diagnostic in checked.warnings:
            out.print(coloured(diagnostic, "warning"), end="\n\n")
        out.print(Line(_summary(name, checked)))
    if args.json:
        console.print_json({"files": documents, "ok": not failed})
    return 1 if failed else 0


def coloured(diagnostic: Diagnostic, severity: str) -> Line:
    """A diagnostic with its heading in colour, where there are colours."""
    heading, _, rest = diagnostic.render().partition("\n")
    colour = {"error": "bold red", "warning": "bold yellow"}[severity]
    code, _, message = heading.partition(": ")
    return Line.assemble((code, colour), (f": {message}", "bold"), f"\n{rest}" if rest else "")


def _summary(name: str, checked: Checked) -> str:
    if checked.errors:
        count = len(checked.errors)
        return f"{name}: {count} error{'s' if count > 1 else ''}"
    pattern = checked.pattern
    assert pattern is not None, "a text without errors is a pattern"
    parameters = [f"{key} = {value} (fixed)" for key, value in pattern.fixed]
    parameters += [
        p.name if p.value is None else f"{p.name} = {p.value}" for p in pattern.parameters
    ]
    shown = f" {pattern.name}({', '.join(parameters)})" if pattern.name or parameters else ""
    return f"{name}: ok{shown}"


def _document(name: str, checked: Checked) -> dict[str, Any]:
    pattern = checked.pattern
    return {
        "file": name,
        "ok": not checked.errors,
        "pattern": None
        if pattern is None
        else {
            "name": pattern.name,
            "text": pattern.text,
            "fixed": dict(pattern.fixed),
            "parameters": {parameter.name: parameter.value for parameter in pattern.parameters},
        },
        "diagnostics": [_diagnostic(d, "error") for d in checked.errors]
        + [_diagnostic(d, "warning") for d in checked.warnings],
    }


def _diagnostic(diagnostic: Diagnostic, severity: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "severity": severity,
        "code": diagnostic.code,
        "message": diagnostic.message,
        "hint": diagnostic.hint,
        "notes": list(diagnostic.notes),
    }
    if diagnostic.source is not None and diagnostic.span is not None:
        line, column = diagnostic.source.position(diagnostic.span.start)
        end_line, end_column = diagnostic.source.position(diagnostic.span.end)
        document |= {
            "source": diagnostic.source.name,
            "line": line,
            "column": column,
            "end_line": end_line,
            "end_column": end_column,
        }
    return document
