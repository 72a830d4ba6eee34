"""The library: named patterns, each a file `library/NAME.pat` in the language itself.

Reads files, parses nothing. The first line of a file's comment says what the pattern is, the last
one, `# Source: ...`, where it comes from; what is to be known of its parameters stands between. The
definition that has the file's name is the pattern.
"""

from functools import cache
from importlib import resources

from patterncc.dsl.source import Source

_FOLDER = "library"
_SUFFIX = ".pat"
_ORIGIN = "Source:"


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


def notes(name: str) -> str:
    """What is to be known of a library pattern besides its summary; "" for nothing.

    Raises:
        KeyError: There is none of that name.
    """
    return " ".join(line for line in _comment(name)[1:] if not line.startswith(_ORIGIN))


def origin(name: str) -> str:
    """Where a library pattern comes from: papers, code.

    Raises:
        KeyError: There is none of that name.
    """
    found = [line for line in _comment(name) if line.startswith(_ORIGIN)]
    return found[0].removeprefix(_ORIGIN).strip() if found else ""


def _comment(name: str) -> list[str]:
    """The lines of the comment at the start of a file."""
    lines = []
    for line in source(name).text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines
