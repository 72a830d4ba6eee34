"""Every exception of patterncc, and `Diagnostic`: one mistake in a text, and how it is printed.

Exceptions take positional arguments only and keep them in `args`, because worker processes pickle
them.
"""

import unicodedata
from dataclasses import dataclass
from typing import Literal, NamedTuple

from patterncc.dsl.source import Source, Span

_WIDTH = 100  # columns of a source line that are shown
_TAB = 4
_ELLIPSIS = "..."
_MAX_FAILURES = 20  # rows of a TuningError that are shown


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake in a text.

    Args:
        code: Stable slug, an entry of docs/errors.md, such as `unknown-name`.
        message: What is wrong, in one sentence without a final stop.
        span: Where it is.
        hint: What to do about it.
        notes: Further facts, one a line.
        source: The text that `span` points into.
        severity: A warning is about something legal, and is never raised.
    """

    code: str
    message: str
    span: Span | None = None
    hint: str | None = None
    notes: tuple[str, ...] = ()
    source: Source | None = None
    severity: Literal["error", "warning"] = "error"

    def render(self) -> str:
        """The diagnostic as text of several lines, without a final line end."""
        lines = [f"{self.severity}[{self.code}]: {_indented(self.message, 2)}"]
        gutter = 1
        if self.source is not None:
            name = _printable(self.source.name)
            if self.span is None:
                lines.append(f" --> {name}")
            else:
                line, column = self.source.position(self.span.start)
                number = str(line)
                gutter = len(number)
                text, carets = _excerpt(self.source, self.span)
                lines += [
                    f"{'':{gutter}}--> {name}:{line}:{column}",
                    f"{'':{gutter}} |",
                    f"{number} | {text}".rstrip(),
                    f"{'':{gutter}} | {carets}",
                ]
        remarks = [("hint", self.hint)] if self.hint else []
        remarks += [("note", note) for note in self.notes]
        for kind, remark in remarks:
            lead = f"{'':{gutter}} = {kind}: "
            lines.append(lead + _indented(remark, len(lead)))
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.render()


class PatternccError(Exception):
    """Base of every error that patterncc raises on purpose."""


class PatternError(PatternccError):
    """The text of a pattern is wrong.

    Args:
        diagnostics: All mistakes that were found, in source order.
    """

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__(*diagnostics)

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All mistakes that were found, in source order."""
        return self.args

    def __str__(self) -> str:
        return "\n\n".join(diagnostic.render() for diagnostic in self.diagnostics)


class PatternSyntaxError(PatternError):
    """The text does not parse."""


class UnknownNameError(PatternError):
    """The text uses a name that nothing defines."""


class PatternTypeError(PatternError):
    """The text joins things that do not fit: an argument, an operand, a count of arguments."""


class UnsupportedError(PatternccError):
    """A legal pattern that cannot be done as asked on this device, shape or dtype.

    Args:
        message: What cannot be done.
        hint: What can.
    """

    def __init__(self, message: str, hint: str = "", /) -> None:
        super().__init__(message, hint)

    @property
    def message(self) -> str:
        """What cannot be done."""
        return str(self.args[0])

    @property
    def hint(self) -> str:
        """What can be done instead; empty if nothing is known."""
        return str(self.args[1])

    def __str__(self) -> str:
        return f"{self.message}\n  = hint: {self.hint}" if self.hint else self.message


class ConfigError(PatternccError):
    """An option or a knob has a value that it cannot have.

    Args:
        message: Which one, and the value it was given.
        legal: The values it can have, as text.
    """

    def __init__(self, message: str, legal: tuple[str, ...] = (), /) -> None:
        super().__init__(message, legal)

    @property
    def message(self) -> str:
        """Which option or knob, and the value it was given."""
        return str(self.args[0])

    @property
    def legal(self) -> tuple[str, ...]:
        """The values it can have, as text."""
        return tuple(self.args[1])

    def __str__(self) -> str:
        return f"{self.message}; legal: {', '.join(self.legal)}" if self.legal else self.message


class ArgumentError(PatternccError, ValueError):
    """An argument of a call is missing, unknown, of the wrong type, shape or size.

    Also a `ValueError`, so that callers who know nothing of patterncc can catch it.

    Args:
        message: The argument, what it got and what it wants, in one sentence without a final stop.
    """


class TuningError(PatternccError):
    """No configuration worked.

    Args:
        message: What was being tuned.
        failures: Pairs of a configuration and why it failed, as text.
    """

    def __init__(self, message: str, failures: tuple[tuple[str, str], ...] = (), /) -> None:
        super().__init__(message, failures)

    @property
    def message(self) -> str:
        """What was being tuned."""
        return str(self.args[0])

    @property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a configuration and why it failed."""
        return tuple(self.args[1])

    def __str__(self) -> str:
        lines = [self.message]
        lines += [f"  {config}: {reason}" for config, reason in self.failures[:_MAX_FAILURES]]
        if len(self.failures) > _MAX_FAILURES:
            lines.append(f"  and {len(self.failures) - _MAX_FAILURES} more")
        return "\n".join(lines)


class InternalError(PatternccError):
    """A mistake of patterncc itself.

    Args:
        message: What went wrong, and in which pass.
        dump: The file that holds the state at that point.
    """

    def __init__(self, message: str, dump: str = "", /) -> None:
        super().__init__(message, dump)

    @property
    def message(self) -> str:
        """What went wrong."""
        return str(self.args[0])

    @property
    def dump(self) -> str:
        """The file that holds the state at that point; empty if none was written."""
        return str(self.args[1])

    def __str__(self) -> str:
        lines = [f"{self.message}. This is a bug in patterncc, please report it."]
        if self.dump:
            lines.append(f"  = note: written to {self.dump}; please attach it")
        return "\n".join(lines)


class _Cell(NamedTuple):
    """One character of a source line as it is shown, and the columns it takes."""

    text: str
    width: int


def _cell(character: str, column: int) -> _Cell:
    """How a character is shown at a column. Nothing that moves the cursor gets through."""
    if character == "\t":
        width = _TAB - column % _TAB
        return _Cell(" " * width, width)
    category = unicodedata.category(character)
    if category in ("Mn", "Me"):
        return _Cell(character, 0)
    if ord(character) < 0x20:
        return _Cell(chr(0x2400 + ord(character)), 1)  # the control pictures
    # Controls, direction marks and lone surrogates; line and paragraph separators.
    if category in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return _Cell("\N{REPLACEMENT CHARACTER}", 1)
    return _Cell(character, 2 if unicodedata.east_asian_width(character) in "WF" else 1)


def _cells(text: str) -> list[_Cell]:
    """The cells of a text that starts at a tab stop."""
    cells = []
    column = 0
    for character in text:
        cell = _cell(character, column)
        column += cell.width
        cells.append(cell)
    return cells


def _printable(text: str) -> str:
    return "".join(cell.text for cell in _cells(text))


def _indented(text: str, indent: int) -> str:
    """A text of one or more lines, all but the first indented."""
    return ("\n" + " " * indent).join(map(_printable, text.split("\n")))


def _excerpt(source: Source, span: Span) -> tuple[str, str]:
    """The first line of a span as shown, and the carets to print under it."""
    whole = source.line_span(span.start)
    # Only this part can come into view, however long the line is.
    near = Span(max(whole.start, span.start - _WIDTH), min(whole.end, span.start + _WIDTH))
    cells = _cells(source.excerpt(near))
    start = min(span.start - near.start, len(cells))
    end = min(max(span.end, span.start) - near.start, len(cells))

    # Widen the view from the start of the span: over the span first, then to both sides in turn.
    low = high = start
    room = _WIDTH
    while high < end and cells[high].width <= room:
        room -= cells[high].width
        high += 1
    widened = True
    while widened:
        widened = False
        if low > 0 and cells[low - 1].width <= room:
            low -= 1
            room -= cells[low].width
            widened = True
        if high < len(cells) and cells[high].width <= room:
            room -= cells[high].width
            high += 1
            widened = True

    head = _ELLIPSIS if near.start + low > whole.start else ""
    tail = _ELLIPSIS if near.start + high < whole.end else ""
    text = head + "".join(cell.text for cell in cells[low:high]) + tail
    column = len(head) + sum(cell.width for cell in cells[low:start])
    count = sum(cell.width for cell in cells[start : min(end, high)])
    return text, " " * column + "^" * max(count, 1)
