"""Source text and places in it. Owns offsets, lines and columns; how a place is shown is not here.

Offsets count code points from 0 and ranges are half-open. Lines and columns count from 1.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The half-open range `[start, end)` of offsets into a text."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"not a span: start {self.start}, end {self.end}")

    def cover(self, other: "Span") -> "Span":
        """The smallest span that holds both."""
        return Span(min(self.start, other.start), max(self.end, other.end))


@dataclass(frozen=True, slots=True)
class Source:
    """A text and the name to call it by in messages, such as a path.

    A line ends with a line feed. A carriage return before it belongs to the line end.
    """

    name: str
    text: str

    def position(self, offset: int) -> tuple[int, int]:
        """The line and the column of an offset. Past the end of the text counts as its end."""
        offset = min(offset, len(self.text))
        line = self.text.count("\n", 0, offset) + 1
        return line, offset - self.line_span(offset).start + 1

    def line_span(self, offset: int) -> Span:
        """The span of the line that holds an offset, without its line end."""
        offset = min(offset, len(self.text))
        start = self.text.rfind("\n", 0, offset) + 1
        end = self.text.find("\n", offset)
        if end < 0:
            end = len(self.text)
        elif end > start and self.text[end - 1] == "\r":
            end -= 1
        return Span(start, end)

    def excerpt(self, span: Span) -> str:
        """The text of a span."""
        return self.text[span.start : span.end]

    def end(self) -> Span:
        """The empty span after the last character that is not white space: where more was due."""
        offset = len(self.text.rstrip())
        return Span(offset, offset)
