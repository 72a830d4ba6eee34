"""Syntax → `Pattern`: chooses the definition that is meant, binds its parameters, reports mistakes.

How expressions are written out is in elaborate.py, what declarations must look like in declare.py.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass

from patterncc.dsl.declare import ANONYMOUS, check_declarations, declared_type, default_of
from patterncc.dsl.elaborate import Elaborator, Meaning
from patterncc.dsl.errors import Diagnostic
from patterncc.dsl.limits import MAX_CONSTANT
from patterncc.dsl.mask import FALSE, Predicate
from patterncc.dsl.modules import Module
from patterncc.dsl.pattern import IntType, Parameter, Pattern
from patterncc.dsl.printer import pattern_text
from patterncc.dsl.source import Span
from patterncc.dsl.suggest import did_you_mean
from patterncc.dsl.syntax import Definition, ParameterDeclaration, Program
from patterncc.dsl.values import GiveUpError, Report, Value


@dataclass(frozen=True, slots=True)
class Checked:
    """What checking gives.

    Attributes:
        pattern: The pattern, if nothing is wrong with the text.
        errors: What is wrong, in source order.
        warnings: What is legal but likely not meant, in source order; empty if there are errors.
    """

    pattern: Pattern | None
    errors: tuple[Diagnostic, ...]
    warnings: tuple[Diagnostic, ...]


def check(
    program: Program,
    module: Module,
    name: str | None,
    values: Mapping[str, object],
    complete: bool = True,
) -> Checked:
    """Checks all definitions of a text and builds the pattern that is meant. Raises for no mistake.

    Args:
        program: The syntax of the text.
        module: The definitions of the text by name.
        name: The pattern that is meant; the last one if None.
        values: Values of its parameters.
        complete: Does all of the text parse? If not, which pattern is meant cannot be told.
    """
    report, warnings = Report(module.source), Report(module.source, "warning")
    pattern = None
    try:
        check_declarations(program.definitions, report)
        elaborator = Elaborator(module, report)
        for definition in program.definitions:
            _warn(definition, elaborator.meaning(definition), warnings)
        root = _chosen(program, name, report) if complete else None
        if root is not None:
            pattern = _build(root, elaborator, values)
    except GiveUpError:
        pass
    errors = report.diagnostics()
    # Next to a mistake, a name that is not used is likely a part of it.
    return Checked(pattern, (), warnings.diagnostics()) if not errors else Checked(None, errors, ())


def _chosen(program: Program, name: str | None, report: Report) -> Definition | None:
    """The definition that is meant."""
    if name is None:
        return program.definitions[-1] if program.definitions else None
    names = []
    for definition in program.definitions:
        if definition.name is not None:
            if definition.name.text == name:
                return definition
            names.append(definition.name.text)
    hint = did_you_mean(name, names)
    if not hint and names:
        hint = f"it defines {', '.join(f'`{known}`' for known in names)}"
    message = f"the text defines no pattern called `{name}`"
    report.add("unknown-name", message, Span(0, 0), hint)
    return None


def _build(
    definition: Definition, elaborator: Elaborator, values: Mapping[str, object]
) -> Pattern | None:
    """The pattern of a definition, its fixed parameters bound to their values."""
    report = elaborator.report
    meaning = elaborator.meaning(definition)
    numbers = _numbers(definition, values, report)
    fixed = meaning.fixed
    for parameter in definition.parameters:
        if parameter.name.text in fixed and parameter.name.text not in numbers:
            _missing(parameter, report)
    if meaning.value is None or len(report):
        return None
    value: Value | None = meaning.value
    if fixed:
        value = elaborator.meaning_with(definition, {name: numbers[name] for name in fixed}).value
    if value is None:
        return None
    body: Predicate = value.expr  # type: ignore[assignment]
    if body == FALSE:
        message = "no query can attend to any key: the pattern is always false"
        report.add("unsatisfiable", message, definition.body.span)
        return None
    parameters = []
    for declaration in definition.parameters:
        name = declaration.name.text
        kind = declared_type(declaration)
        if kind is not None and name not in fixed:
            parameters.append(Parameter(name, kind, numbers.get(name)))
    called = definition.name.text if definition.name else ""
    return Pattern(
        name="" if called == ANONYMOUS else called,
        parameters=tuple(parameters),
        fixed=tuple(
            (declaration.name.text, numbers[declaration.name.text])
            for declaration in definition.parameters
            if declaration.name.text in fixed
        ),
        body=body,
        text=pattern_text(parameters, body),
        structure=pattern_text(parameters, body, defaults=False),
    )


def _numbers(
    definition: Definition, values: Mapping[str, object], report: Report
) -> dict[str, int]:
    """The values of parameters: those given, and defaults."""
    declared = {declaration.name.text: declaration for declaration in definition.parameters}
    numbers: dict[str, int] = {}
    for name, declaration in declared.items():
        default = default_of(declaration)
        if default is not None:
            numbers[name] = default
    place = definition.name.span if definition.name else Span(0, 0)
    called = f"`{definition.name.text}`" if definition.name else "this pattern"
    for name, value in values.items():
        if name not in declared:
            message = f"{called} has no parameter `{name}`"
            hint = did_you_mean(name, declared)
            if not declared:
                hint = "it has no parameters at all"
            report.add("wrong-value", message, place, hint)
            continue
        declaration = declared[name]
        span = declaration.span
        if not isinstance(declared_type(declaration), IntType):
            message = f"`{name}` is a table; its value is given at the call, not here"
            report.add("wrong-value", message, span)
            continue
        number = _integer(value)
        if number is None:
            message = f"`{name}` is a number, and was given {_shown(value)}"
            report.add("wrong-value", message, span)
            numbers.setdefault(name, 1)  # so that it is not missing as well
        elif abs(number) > MAX_CONSTANT:
            message = f"`{name}` was given a number too large"
            hint = f"numbers go from -{MAX_CONSTANT} to {MAX_CONSTANT}"
            report.add("constant-too-large", message, span, hint)
        else:
            numbers[name] = number
    return numbers


def _integer(value: object) -> int | None:
    """A value as an integer, if it is one; truth values are not."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text[:40]}..." if len(text) > 40 else text


def _missing(parameter: ParameterDeclaration, report: Report) -> None:
    name = parameter.name.text
    report.add(
        "missing-value",
        f"`{name}` has no value, and a kernel is compiled for one",
        parameter.span,
        f"give one when the pattern is compiled, `{name}=...`, or a default here",
        (f"`{name}` divides, is a modulus, multiplies a position or sizes a block",),
    )


def _warn(definition: Definition, meaning: Meaning, warnings: Report) -> None:
    """Warns of parameters and lets that nothing reads."""
    for kind, names in (
        ("parameter", [parameter.name for parameter in definition.parameters]),
        ("let", [let.name for let in definition.lets]),
    ):
        for name in names:
            if name.text not in meaning.used:
                warnings.add("unused", f"the {kind} `{name.text}` is never used", name.span)
