"""The stable codes of diagnostics, and the exception of each. docs/errors.md explains every one."""

from patterncc.dsl.errors import (
    Diagnostic,
    PatternError,
    PatternSyntaxError,
    PatternTypeError,
    UnknownNameError,
)

CODES: dict[str, type[PatternError]] = {
    # the text
    "empty": PatternSyntaxError,
    "foreign-operator": PatternSyntaxError,
    "single-equals": PatternSyntaxError,
    "syntax": PatternSyntaxError,
    "too-deep": PatternSyntaxError,
    "too-long": PatternSyntaxError,
    "unexpected-character": PatternSyntaxError,
    "unmatched-bracket": PatternSyntaxError,
    # names
    "duplicate-name": PatternError,
    "recursion": PatternError,
    "reserved-name": PatternError,
    "unknown-name": UnknownNameError,
    "unused": PatternError,  # a warning in patterns: never raised
    # types and arguments
    "table-index": PatternTypeError,
    "type-mismatch": PatternTypeError,
    "unknown-type": PatternTypeError,
    "wrong-arguments": PatternTypeError,
    # values
    "constant-too-large": PatternError,
    "missing-value": PatternError,
    "not-positive": PatternError,
    "unsatisfiable": PatternError,
    "wrong-value": PatternError,
    # what cannot be compiled
    "cover-argument": PatternError,
    "length-divisor": PatternError,
    "not-constant": PatternError,
    "not-linear": PatternError,
    "varying-divisor": PatternError,
}


def error_for(diagnostics: tuple[Diagnostic, ...]) -> PatternError:
    """The exception for some mistakes: the class they share, `PatternError` where they differ."""
    classes = {CODES[diagnostic.code] for diagnostic in diagnostics}
    return (classes.pop() if len(classes) == 1 else PatternError)(*diagnostics)
