"""Modules: the definitions of one text; the library's are parsed once per process."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from patterncc.dsl import library
from patterncc.dsl.errors import InternalError
from patterncc.dsl.parser import parse
from patterncc.dsl.source import Source
from patterncc.dsl.syntax import Definition


@dataclass(frozen=True, slots=True)
class Module:
    """What one text defines.

    Attributes:
        source: The text.
        definitions: The patterns that can be used by name; of two with one name, the first.
        broken: Names that it defines in parts that do not parse.
        library: Is it a file of the library? Those are known to be right (the tests check them).
    """

    source: Source
    definitions: Mapping[str, Definition]
    broken: frozenset[str] = frozenset()
    library: bool = False


@cache
def library_module(name: str) -> Module:
    """The module of a library pattern, which `name` is known to be.

    Raises:
        InternalError: The library file does not parse.
    """
    source = library.source(name)
    parsed = parse(source)
    if parsed.diagnostics:
        raise InternalError(
            f"the library's `{name}` does not parse: {parsed.diagnostics[0].message}"
        )
    definitions = {
        definition.name.text: definition
        for definition in parsed.program.definitions
        if definition.name is not None
    }
    return Module(source, definitions, library=True)
