"""The entry to the language: text, or the name of a library pattern, → `Pattern`."""

from collections.abc import Mapping

from patterncc.dsl import library
from patterncc.dsl.check import Checked, check
from patterncc.dsl.codes import error_for
from patterncc.dsl.errors import Diagnostic
from patterncc.dsl.modules import Module
from patterncc.dsl.parser import parse
from patterncc.dsl.pattern import Pattern
from patterncc.dsl.source import Source
from patterncc.dsl.syntax import Definition


def load(
    source: str, *, name: str | None = None, file: str | None = None, **values: int
) -> Pattern:
    """The pattern that a text means.

    Args:
        source: The text, or the name of a library pattern.
        name: Which pattern of the text is meant; the last one if None.
        file: What to call the text in messages, such as its path.
        **values: Values of the pattern's parameters. Those of fixed parameters become constants of
            the pattern, those of run-time parameters become its defaults.

    Raises:
        PatternError: The text or a value is wrong; holds every mistake that was found.
    """
    checked = diagnose(source, name=name, file=file, values=values)
    if checked.pattern is None:
        raise error_for(checked.errors)
    return checked.pattern


def diagnose(
    source: str,
    *,
    name: str | None = None,
    file: str | None = None,
    values: Mapping[str, object] | None = None,
) -> Checked:
    """The pattern that a text means, if any, with every mistake and every warning.

    Takes what `load` takes, and raises for no mistake in it.
    """
    text = source_of(source, file)
    parsed = parse(text)
    definitions: dict[str, Definition] = {}
    for definition in parsed.program.definitions:
        if definition.name is not None:
            definitions.setdefault(definition.name.text, definition)
    module = Module(text, definitions, parsed.program.broken)
    complete = not parsed.diagnostics
    checked = check(parsed.program, module, name, values or {}, complete)
    if complete:
        return checked
    errors = (*parsed.diagnostics, *checked.errors)
    return Checked(None, tuple(sorted(errors, key=_place)), ())


def source_of(source: str, file: str | None = None) -> Source:
    """The text that `load` would read: a library pattern's, where `source` is the name of one."""
    if source in library.names():
        return library.source(source)
    return Source(file or "<pattern>", source)


def _place(diagnostic: Diagnostic) -> int:
    return diagnostic.span.start if diagnostic.span else 0
