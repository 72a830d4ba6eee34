"""Text → syntax. The only file that imports lark; what lark rejects becomes diagnostics here.

Names, types and meaning are not looked at. A text with several mistakes is parsed piece by piece:
each definition by itself, and a definition again without a `let` that does not parse.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, cast

from lark import Lark, UnexpectedToken
from lark import Token as LarkToken
from lark.parsers.lalr_interactive_parser import InteractiveParser

from patterncc.dsl.actions import Actions
from patterncc.dsl.errors import Diagnostic
from patterncc.dsl.limits import MAX_DEPTH, MAX_TEXT
from patterncc.dsl.source import Source, Span
from patterncc.dsl.syntax import Definition, Expression, Program, subexpressions
from patterncc.dsl.tokens import Token, TokenStream, arrange
from patterncc.dsl.words import expected_words, found_words


@dataclass(frozen=True, slots=True)
class Parsed:
    """What parsing gives.

    Attributes:
        program: What could be parsed.
        comments: In source order, each with its `#`.
        diagnostics: What could not, in source order.
    """

    program: Program
    comments: tuple[Token, ...]
    diagnostics: tuple[Diagnostic, ...]


def parse(source: Source, *, reals: bool = False) -> Parsed:
    """The syntax of a text, as far as it can be parsed. Never raises for a mistake in the text.

    Args:
        source: The text.
        reals: It is a score term, in which `/` and numbers like `0.5` may stand.
    """
    if len(source.text) > MAX_TEXT:
        message = (
            f"the text has {len(source.text)} characters, and more than {MAX_TEXT} are not read"
        )
        return Parsed(
            Program(()), (), (Diagnostic("too-long", message, Span(0, 0), source=source),)
        )
    stream = arrange(_lex(source.text), source, _keywords(), reals=reals)
    if not stream.complete:
        return Parsed(Program(()), (), tuple(stream.diagnostics))
    if not stream.tokens:
        message = "the text defines no pattern"
        hint = "the pattern that allows every pair is `true`"
        if reals:
            message, hint = "the text is empty", "the logit that is the score itself is `score`"
        empty = Diagnostic("empty", message, source.end(), hint, source=source)
        return Parsed(
            Program(()),
            tuple(stream.comments),
            (*stream.diagnostics, *([] if stream.diagnostics else [empty])),
        )
    pieces = _Pieces(source, stream)
    pieces.parse()
    diagnostics = sorted(pieces.diagnostics, key=lambda d: d.span.start if d.span else 0)
    return Parsed(
        Program(tuple(pieces.definitions), frozenset(pieces.broken)),
        tuple(stream.comments),
        tuple(diagnostics),
    )


class _Pieces:
    """The state of `parse`: definitions, mistakes, and names lost in what did not parse."""

    def __init__(self, source: Source, stream: TokenStream) -> None:
        self.source = source
        self.stream = stream
        self.diagnostics = list(stream.diagnostics)
        self.definitions: list[Definition] = []
        self.broken: set[str] = set()

    def parse(self) -> None:
        """Parses each piece: from one `pattern` to the next."""
        tokens = self.stream.tokens
        starts = [place for place, token in enumerate(tokens) if token.type == "PATTERN"]
        # In the middle of a line, `pattern` is a mistake of that line.
        starts = [place for place in starts if place == 0 or tokens[place - 1].type == "NEWLINE"]
        if not starts or starts[0] != 0:
            starts.insert(0, 0)
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            self.piece(tokens[start:end], alone=len(starts) == 1)

    def piece(self, tokens: list[Token], alone: bool) -> None:
        """Parses one definition, dropping each `let` that does not parse."""
        name = tokens[1].text if tokens[0].type == "PATTERN" and len(tokens) > 1 else None
        if name is None and not alone:
            self.report(
                "syntax",
                "an expression without a name must be the whole text",
                tokens[0].span,
                "name it: `pattern name(): ...`",
            )
            return
        while tokens:
            try:
                parsed = _feed(tokens)
            except _Rejected as rejected:
                line = _line_of(tokens, rejected.place)
                self.reject(tokens, line, rejected)
                if tokens[line.start].type != "LET":
                    break
                self.broken.update(
                    after.text
                    for before, after in itertools.pairwise(tokens[line.start : line.stop])
                    if before.type == "LET" and after.type == "NAME"
                )
                tokens = tokens[: line.start] + tokens[line.stop :]
                continue
            for definition in parsed:
                place = _too_deep(definition)
                if place is None:
                    self.definitions.append(definition)
                else:
                    self.report(
                        "too-deep",
                        f"expressions are nested more than {MAX_DEPTH} deep",
                        place,
                        "name parts of it with `let`",
                    )
                    self.broken.add(name or "")
            return
        if name is not None:
            self.broken.add(name)

    def reject(self, tokens: list[Token], line: range, rejected: "_Rejected") -> None:
        """Reports a token that does not fit, unless its line was mended."""
        start, end = tokens[line.start].start, tokens[line.stop - 1].end
        if any(start <= offset <= end for offset in self.stream.damaged):
            return
        token = tokens[rejected.place]
        span = token.span
        if token.type == "NEWLINE":
            before = tokens[rejected.place - 1].end if rejected.place else token.start
            span = Span(before, before)
        if token.type == "ASSIGN":
            self.report("single-equals", "`=` does not compare", span, "write `==`")
            return
        after = tokens[rejected.place - 1] if rejected.place else None
        wanted, hint = expected_words(rejected.accepts, after, token)
        self.report("syntax", f"expected {wanted}, found {found_words(token)}", span, hint)

    def report(self, code: str, message: str, span: Span, hint: str | None = None) -> None:
        self.diagnostics.append(Diagnostic(code, message, span, hint, source=self.source))


class _Rejected(Exception):
    """A token that does not fit, by its place in the tokens, and the kinds that would."""

    def __init__(self, place: int, accepts: frozenset[str]) -> None:
        super().__init__(place, accepts)
        self.place = place
        self.accepts = accepts


def _feed(tokens: list[Token]) -> tuple[Definition, ...]:
    """Parses tokens as a program.

    Raises:
        _Rejected: A token does not fit.
    """
    parser = _lark().parse_interactive("")
    for place, token in enumerate(tokens):
        try:
            parser.feed_token(cast("LarkToken", token))
        except UnexpectedToken:
            raise _Rejected(place, _accepts(parser)) from None
    try:
        return cast("tuple[Definition, ...]", parser.feed_eof())  # type: ignore[no-untyped-call]
    except UnexpectedToken:
        raise _Rejected(len(tokens) - 1, _accepts(parser)) from None


def _accepts(parser: InteractiveParser) -> frozenset[str]:
    """The kinds of token that fit next."""
    return frozenset(parser.accepts())  # type: ignore[no-untyped-call]


def _line_of(tokens: list[Token], place: int) -> range:
    """The places of the `let` or body that holds a place."""
    start = place
    while start > 0 and tokens[start - 1].type not in ("NEWLINE", "COLON"):
        start -= 1
    if any(token.type == "LET" for token in tokens[start:place]) and tokens[start].type != "LET":
        start = place  # a `let` in the middle of a line
    stop = place
    while stop < len(tokens) and tokens[stop].type != "NEWLINE":
        stop += 1
    return range(start, min(stop + 1, len(tokens)))


def _too_deep(definition: Definition) -> Span | None:
    """A place where expressions are nested too deep."""
    defaults = [declared.default for declared in definition.parameters if declared.default]
    roots = [*defaults, *(let.value for let in definition.lets), definition.body]
    stack: list[tuple[Expression, int]] = [(root, 1) for root in roots]
    while stack:
        node, depth = stack.pop()
        if depth > MAX_DEPTH:
            return node.span
        stack.extend((inner, depth + 1) for inner in subexpressions(node))
    return None


# --------------------------------------------------------------------------------------------- lark


class _KeepTerminals:
    """Tells lark to keep the terminals that no rule uses: `arrange` takes them out."""

    always_accept = ("COMMENT", "FOREIGN", "UNEXPECTED")

    def process(self, stream: Iterator[LarkToken]) -> Iterator[LarkToken]:
        return stream


@lru_cache(maxsize=1)
def _lark() -> Lark:
    grammar = resources.files("patterncc.dsl").joinpath("grammar.lark").read_text(encoding="utf-8")
    return Lark(
        grammar,
        start="program",
        parser="lalr",
        lexer="basic",
        maybe_placeholders=False,
        postlex=cast("Any", _KeepTerminals()),
        transformer=cast("Any", Actions()),
    )


@lru_cache(maxsize=1)
def _keywords() -> dict[str, str]:
    """Spelling of each fixed terminal → its name."""
    return {
        terminal.pattern.value: terminal.name
        for terminal in _lark().terminals
        if terminal.pattern.type == "str"
    }


def _lex(text: str) -> Iterator[Token]:
    lexing = _lark().parse_interactive(text)
    for token in lexing.lexer_thread.lex(lexing.parser_state):  # type: ignore[no-untyped-call]
        start = cast("int", token.start_pos)
        yield Token(token.type, str(token), start, start + len(token))
