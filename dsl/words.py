"""What a syntax error calls the things it expected and found, in words."""

from patterncc.dsl.tokens import Token

_SPELLINGS = {
    "COLON": "`:`",
    "COMMA": "`,`",
    "ASSIGN": "`=`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "RANGE": "`..`",
    "STAR": "`*`",
    "PATTERN": "`pattern`",
    "LET": "`let`",
    "THEN": "`then`",
    "ELSE": "`else`",
    "NAME": "a name",
    "NEWLINE": "the end of the line",
    "$END": "the end of the text",
}
_EXPRESSION = frozenset(["NUMBER", "NAME", "LPAR", "MINUS", "TRUE", "FALSE"])
_OPERATORS = frozenset(
    [
        "AND",
        "OR",
        "IN",
        "AT",
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
    ]
)


def expected_words(
    accepts: frozenset[str], after: Token | None, found: Token
) -> tuple[str, str | None]:
    """What would have fitted, in words, and a hint if there is a likely cause.

    Args:
        accepts: The kinds of token that would have fitted.
        after: The token before the one that does not fit.
        found: The one that does not fit.
    """
    words = []
    rest = set(accepts)
    if rest >= _EXPRESSION:
        words.append("an expression" if "NOT" in rest else "a number")
        rest -= _EXPRESSION | {"IF", "NOT", "FLOAT"}
    elif rest & (_OPERATORS - {"STAR"}):
        words.append("an operator")
        rest -= _OPERATORS
        rest -= {"LPAR", "LSQB"}  # after a name they would fit too, but are rarely what is missing
    words += sorted(_SPELLINGS.get(kind, kind) for kind in rest - {"$END"})
    if "$END" in rest:
        words.append(_SPELLINGS["$END"])
    return _alternatives(words), _cause(accepts, after, found)


def _cause(accepts: frozenset[str], after: Token | None, found: Token) -> str | None:
    if found.type == "IF" and "NAME" in accepts:
        return "put the `if` in parentheses"
    if found.type == "NOT" and "NAME" in accepts:
        return "put the `not` and what follows it in parentheses"
    if found.type == "NEWLINE":
        return "a line goes on after an operator or inside brackets"
    if (
        found.type in ("AND", "OR", "ELSE", "THEN")
        and after is not None
        and after.type == "NEWLINE"
    ):
        return f"end the line before with `{found.text}`, or put the expression in parentheses"
    if found.type == "PATTERN" and "NEWLINE" in accepts:
        return "start it on a line of its own"
    if found.type == "LET" and "NEWLINE" in accepts:
        return "start it on a line of its own"
    if accepts <= {"PATTERN", "$END"}:
        return "a body is one expression; a line goes on after an operator or inside brackets"
    return None


def found_words(token: Token) -> str:
    """What a token is called where it does not fit."""
    if token.type == "NEWLINE":
        return _SPELLINGS["NEWLINE"] if token.text else "the end of the text"
    return f"`{token.text}`"


def _alternatives(words: list[str]) -> str:
    if len(words) <= 1:
        return "".join(words) or "nothing more"
    return f"{', '.join(words[:-1])} or {words[-1]}"
