"""Which argument of a call belongs to which parameter. Looks at counts and names, not at values."""

from collections.abc import Sequence

from patterncc.dsl.declare import default_of
from patterncc.dsl.source import Span
from patterncc.dsl.suggest import did_you_mean
from patterncc.dsl.syntax import Argument, Identifier, ParameterDeclaration
from patterncc.dsl.values import Report


def match_arguments(
    callee: Identifier,
    parameters: Sequence[ParameterDeclaration],
    arguments: Sequence[Argument],
    call: Span,
    report: Report,
) -> dict[str, Argument] | None:
    """The argument of each parameter that is given one, by its name; None if something is wrong."""
    names = [parameter.name.text for parameter in parameters]
    signature = f"`{callee.text}({', '.join(map(describe, parameters))})`"
    given: dict[str, Argument] = {}
    wrong = False
    positional = [argument for argument in arguments if argument.name is None]
    if len(positional) > len(names):
        report.add(
            "wrong-arguments",
            f"`{callee.text}` takes {count(len(names), 'argument')}, not {len(positional)}",
            positional[len(names)].span.cover(positional[-1].span),
            f"it is {signature}",
        )
        wrong = True
    seen_keyword = False
    for argument in arguments:
        if argument.name is not None:
            seen_keyword = True
        elif seen_keyword:
            report.add(
                "wrong-arguments",
                "a positional argument follows one with a name",
                argument.span,
                f"it is {signature}",
            )
            return None
    given.update(zip(names, positional, strict=False))
    for argument in arguments:
        if argument.name is None:
            continue
        name = argument.name.text
        if name not in names:
            report.add(
                "wrong-arguments",
                f"`{callee.text}` has no parameter `{name}`",
                argument.name.span,
                did_you_mean(name, names) or f"it is {signature}",
            )
            wrong = True
        elif name in given:
            report.add("wrong-arguments", f"`{name}` is given twice", argument.span)
            wrong = True
        else:
            given[name] = argument
    missing = [
        parameter.name.text
        for parameter in parameters
        if parameter.default is None and parameter.name.text not in given
    ]
    if missing and not wrong:
        listed = " and ".join(f"`{name}`" for name in missing)
        report.add(
            "wrong-arguments",
            f"`{callee.text}` needs {listed}",
            call,
            f"it is {signature}",
        )
        wrong = True
    return None if wrong else given


def describe(parameter: ParameterDeclaration) -> str:
    """A parameter as a signature shows it."""
    text = parameter.name.text
    if parameter.type is not None and parameter.type.name.text != "int":
        axes = ", ".join(axis.text for axis in parameter.type.axes)
        text += f": {parameter.type.name.text}" + (f"[{axes}]" if axes else "")
    default = default_of(parameter)
    return text if default is None else f"{text} = {default}"


def count(number: int, noun: str, plural: str = "") -> str:
    """A number and a noun: `no arguments`, `1 argument`, `2 arguments`."""
    return f"{number or 'no'} {noun if number == 1 else plural or noun + 's'}"
