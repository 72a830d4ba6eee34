"""Raw tokens → the tokens that the grammar sees: line ends, brackets, comments, foreign characters.

Each mistake is reported and, where its meaning is clear (`&&`, `≤`, a missing bracket), mended, so
that the rest of the text can still be checked. What the tokens are is up to grammar.lark; this file
knows them by name only.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from patterncc.dsl.errors import Diagnostic
from patterncc.dsl.limits import MAX_DEPTH, MAX_DIAGNOSTICS, MAX_NAME, MAX_TOKENS
from patterncc.dsl.lookalikes import ascii_spelling, describe
from patterncc.dsl.source import Source, Span


class Token(NamedTuple):
    """A terminal of the grammar and where it stands."""

    type: str
    text: str
    start: int
    end: int

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)


@dataclass(slots=True)
class TokenStream:
    """The tokens of a text, ready to be parsed.

    Attributes:
        tokens: With a `NEWLINE` exactly where a `let` or a body ends.
        comments: In source order, each with its `#`.
        diagnostics: What was wrong with the text.
        damaged: Offsets where something was dropped or guessed; a syntax error on their line says
            nothing new.
        complete: False where the text was given up on: it is too long or too deep.
    """

    tokens: list[Token] = field(default_factory=list)
    comments: list[Token] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    complete: bool = True


_CLOSER = {"LPAR": "RPAR", "LSQB": "RSQB", "LBRACE": "RBRACE"}
_SPELLING = {"LPAR": "(", "RPAR": ")", "LSQB": "[", "RSQB": "]", "LBRACE": "{", "RBRACE": "}"}

# After one of these an expression cannot end, so a line that ends in one goes on.
_OPEN_ENDED = frozenset(
    [
        "IF",
        "THEN",
        "ELSE",
        "AND",
        "OR",
        "NOT",
        "IN",
        "AT",
        "COLON",
        "COMMA",
        "ASSIGN",
        "RANGE",
        "EQUAL",
        "UNEQUAL",
        "LESS",
        "LESS_EQUAL",
        "MORE",
        "MORE_EQUAL",
        "PLUS",
        "MINUS",
        "STAR",
        "DIVIDE",
        "MODULO",
        "SLASH",
        "NEWLINE",
    ]
)

_FOREIGN = {
    "&": ("AND", "and"),
    "&&": ("AND", "and"),
    "|": ("OR", "or"),
    "||": ("OR", "or"),
    "!": ("NOT", "not"),
    "~": ("NOT", "not"),
    "/": ("DIVIDE", "//"),
    "<>": ("UNEQUAL", "!="),
}

_CHARACTER_HINTS = {
    ".": "numbers are whole, and a range is written `a..b`",
    ";": "a `let` and a body end where their line ends",
    "\\": "a line goes on after an operator or inside brackets",
    "?": "write `if condition then a else b`",
    "^": "there is no power; `!=` between numbers is the nearest to an exclusive or",
    '"': "the language has no strings",
    "'": "the language has no strings",
}


def arrange(
    raw: Iterable[Token], source: Source, keywords: Mapping[str, str], *, reals: bool = False
) -> TokenStream:
    """The tokens of a text with line ends, brackets and foreign characters dealt with.

    Args:
        raw: Tokens as the grammar's terminals match them, white space left out.
        source: The text they come from.
        keywords: Spelling of each fixed terminal → its name.
        reals: Are numbers like `0.5` and `/` part of the language?
    """
    arranger = _Arranger(source, keywords, reals)
    for count, token in enumerate(raw):
        if count >= MAX_TOKENS:
            arranger.report(
                "too-long", f"the text has more than {MAX_TOKENS} words and signs", token.span
            )
            arranger.stream.complete = False
            break
        arranger.take(token)
        if not arranger.stream.complete:
            break
    return arranger.finish()


class _Arranger:
    """The state of `arrange`: the stream so far and the brackets that are open."""

    def __init__(self, source: Source, keywords: Mapping[str, str], reals: bool) -> None:
        self.source = source
        self.reals = reals
        self.keywords = keywords
        self.stream = TokenStream()
        self.open: list[Token] = []
        self.joined = False  # a line end was dropped after the last token

    def report(self, code: str, message: str, span: Span, hint: str | None = None) -> None:
        self.stream.diagnostics.append(Diagnostic(code, message, span, hint, source=self.source))
        if len(self.stream.diagnostics) >= MAX_DIAGNOSTICS:
            self.stream.complete = False

    @property
    def last(self) -> Token | None:
        return self.stream.tokens[-1] if self.stream.tokens else None

    def take(self, token: Token) -> None:
        """Adds a raw token to the stream, or what it is mended to."""
        match token.type:
            case "COMMENT":
                self.stream.comments.append(token)
            case "NEWLINE":
                if not self.open and self.last and self.last.type not in _OPEN_ENDED:
                    self.stream.tokens.append(token)
                else:
                    self.joined = True
            case "FOREIGN" if token.text == "/" and self.reals:
                self.put(token._replace(type="SLASH"))
            case "FOREIGN":
                self.foreign(token)
            case "FLOAT" if not self.reals:
                for part in _pieces(token):
                    self.take(part)
            case "UNEXPECTED":
                self.unexpected(token)
            case "NAME" if len(token.text) > MAX_NAME:
                message = f"a name has more than {MAX_NAME} characters"
                self.report("too-long", message, token.span)
                self.stream.damaged.append(token.start)
            case "NAME" if not token.text.isascii():
                self.foreign_word(token)
            case _:
                self.put(token)

    def put(self, token: Token) -> None:
        """Adds a token of the language; keeps the account of brackets."""
        last = self.last
        if last and last.end == token.start and last.type == "NUMBER":
            if token.type == "NUMBER":  # two runs of digits meet only where one was mended
                self.stream.tokens[-1] = Token(
                    "NUMBER", last.text + token.text, last.start, token.end
                )
                return
            if token.type == "NAME":
                word = last.text + token.text
                self.report(
                    "syntax",
                    f"`{word}` is neither a number nor a name",
                    last.span.cover(token.span),
                )
                return
        if token.type in ("PATTERN", "LET") and self.open:
            # Neither word can stand inside brackets: the missing bracket belongs before it.
            self.close_all(token.start)
            self.end_line(token.start)
        elif token.type in ("PATTERN", "LET") and self.joined and last and last.type != "COLON":
            # Nor can either go on an expression: let the line before be the one that is wrong.
            self.end_line(last.end)
        elif token.type in _CLOSER:
            self.open.append(token)
            if len(self.open) > MAX_DEPTH:
                self.report(
                    "too-deep", f"brackets are nested more than {MAX_DEPTH} deep", token.span
                )
                self.stream.complete = False
        elif token.type in _CLOSER.values():
            if not self.open:
                self.report(
                    "unmatched-bracket",
                    f"`{token.text}` closes nothing",
                    token.span,
                    "remove it, or add the bracket that it closes",
                )
                self.stream.damaged.append(token.start)
                return
            opener = self.open.pop()
            wanted = _CLOSER[opener.type]
            if token.type != wanted:
                self.report(
                    "unmatched-bracket",
                    f"`{token.text}` stands where `{_SPELLING[wanted]}` must close `{opener.text}`",
                    token.span,
                    f"write `{_SPELLING[wanted]}`",
                )
                self.stream.damaged.append(token.start)
                token = token._replace(type=wanted)
        self.stream.tokens.append(token)
        self.joined = False

    def end_line(self, offset: int) -> None:
        """Adds a line end."""
        if self.last and self.last.type != "NEWLINE":
            self.stream.tokens.append(Token("NEWLINE", "\n", offset, offset))

    def foreign(self, token: Token) -> None:
        """An operator of another language."""
        if token.text not in _FOREIGN:
            self.report(
                "foreign-operator",
                f"`{token.text}` is not an operator here",
                token.span,
                "there is no power; multiply with `*`",
            )
            self.put(token._replace(type="STAR", text="*"))
            return
        kind, spelling = _FOREIGN[token.text]
        hint = "`//` divides and rounds down" if spelling == "//" else f"write `{spelling}`"
        self.report("foreign-operator", f"`{token.text}` is not an operator here", token.span, hint)
        self.put(token._replace(type=kind, text=spelling))

    def unexpected(self, token: Token) -> None:
        """A character that is no part of the language."""
        spelling = (
            ascii_spelling(token.text) if not token.text.isascii() or token.text == "\r" else None
        )
        hint = _CHARACTER_HINTS.get(token.text)
        if token.text == "." and self.reals:
            hint = "a number has digits on both sides of its point: `0.5`"
        if spelling == " ":
            hint = "write a plain space"
        elif spelling is not None:
            hint = f"write `{spelling}`"
        kind = "NUMBER" if spelling and spelling.isdigit() else self.keywords.get(spelling or "")
        previous = self.stream.diagnostics[-1] if self.stream.diagnostics else None
        run = (
            kind is None
            and previous is not None
            and previous.code == "unexpected-character"
            and previous.hint == hint
            and previous.span is not None
            and previous.span.end == token.start
        )
        if run and previous is not None and previous.span is not None:
            self.stream.diagnostics[-1] = Diagnostic(
                previous.code,
                previous.message,
                previous.span.cover(token.span),
                previous.hint,
                source=self.source,
            )
        else:
            message = f"{describe(token.text)} is no part of the language"
            self.report("unexpected-character", message, token.span, hint)
        if kind is not None and spelling is not None:
            self.put(token._replace(type=kind, text=spelling))
        elif spelling != " ":
            self.stream.damaged.append(token.start)

    def foreign_word(self, token: Token) -> None:
        """A word with a letter that is not an ASCII one."""
        first = next(place for place, letter in enumerate(token.text) if not letter.isascii())
        span = Span(token.start + first, token.start + first + 1)
        spellings = [
            letter if letter.isascii() else ascii_spelling(letter) for letter in token.text
        ]
        word = "".join(spelling or "" for spelling in spellings)
        hint = "names are made of the letters a to z, digits and `_`"
        mended = all(spellings) and word.replace("_", "a").isalnum() and word.isascii()
        if mended:
            hint = f"write `{word}` with plain letters"
            kind = self.keywords.get(word, "NUMBER" if word.isdigit() else "NAME")
            token = token._replace(type=kind, text=word)
        self.report(
            "unexpected-character",
            f"{describe(self.source.text[span.start])} is no part of the language",
            span,
            hint,
        )
        self.put(token)

    def close_all(self, offset: int) -> None:
        """Reports every open bracket and closes it at an offset."""
        for opener in self.open:
            self.report(
                "unmatched-bracket",
                f"`{opener.text}` is never closed",
                opener.span,
                f"add `{_SPELLING[_CLOSER[opener.type]]}`",
            )
            self.stream.damaged.append(opener.start)
        for opener in reversed(self.open):
            kind = _CLOSER[opener.type]
            self.stream.tokens.append(Token(kind, _SPELLING[kind], offset, offset))
        self.open.clear()

    def finish(self) -> TokenStream:
        """The stream, its last line ended."""
        if self.stream.complete:
            end = self.source.end().start
            self.close_all(end)
            if self.last and self.last.type != "NEWLINE":
                self.stream.tokens.append(Token("NEWLINE", "", end, end))
        return self.stream


def _pieces(token: Token) -> Iterable[Token]:
    """A number with a fraction or an exponent as the tokens that it is made of in a pattern."""
    kinds = {".": "UNEXPECTED", "+": "PLUS", "-": "MINUS"}
    for part in re.finditer(r"[0-9]+|[.+-]|[eE][0-9]*", token.text):
        text, start = part.group(), token.start + part.start()
        kind = kinds.get(text, "NUMBER" if text[0].isdigit() else "NAME")
        yield Token(kind, text, start, start + len(text))
