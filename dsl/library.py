"""The library: named patterns, each a file `library/NAME.pat` in the language itself.

Reads files, parses nothing. A file's first comment line says what the pattern is, the lines after
it say where it comes from. The definition that has the file's name is the pattern.
"""

from functools import cache
from importlib import resources

from patterncc.dsl.source import Source

_FOLDER = "library"
_SUFFIX = ".pat"


@cache
def names() -> tuple[str, ...]:
    """The names of all patterns in the library, in alphabetical order."""
    folder = resources.files("patterncc.dsl").joinpath(_FOLDER)
    files = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX)))


@cache
def source(name: str) -> Source:
    """The text of a library pattern.

    Raises:
        KeyError: There is none of that name.
    """
    if name not in names():
        raise KeyError(name)
    path = resources.files("patterncc.dsl").joinpath(_FOLDER).joinpath(name + _SUFFIX)
    return Source(f"library/{name}{_SUFFIX}", path.read_text(encoding="utf-8"))


def summary(name: str) -> str:
    """The one-line description of a library pattern.

    Raises:
        KeyError: There is none of that name.
    """
    return source(name).text.partition("\n")[0].removeprefix("#").strip()
