"""The text around the functions of a Gluon kernel: its module, and the start of its warps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.gluon.dialect import PRELUDE, gluon_functions
from patterncc.codegen.gpu.kernel_text import INDENT, called_functions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from patterncc.codegen.gpu.gluon.warps import Warps

EMITTER = "gluon 1"
"""Version of the generated text; it is part of the text, so a change of it separates caches."""

ADDING = 2
"""Warps that add. They have room beside the one that loads: warps start in fours."""


def gluon_module(header: str, constants: Mapping[str, object], functions: Iterable[str]) -> str:
    """The text of a module.

    Args:
        header: What it says of itself.
        constants: What the functions know at compile time, by name.
        functions: Their sources; those that they call of all kernels' come before them.
    """
    text = "\n\n".join(functions)
    called = "".join(f"{gluon_functions(one)}\n\n" for one in called_functions(text))
    known = "\n".join(f"{name} = tl.constexpr({value})" for name, value in constants.items())
    return f"{header}\n{PRELUDE}\n\n{known}\n\n\n{called}{text}"


def start_lines(
    compute: str,
    computing: Iterable[str],
    loading: Iterable[str],
    warps: Warps,
    adding: Iterable[str] = (),
) -> Iterator[str]:
    """Starts the warps of a program, once what they share is there.

    Args:
        compute: The function of a computing warpgroup, whose last argument is its number.
        computing: The other arguments of that.
        loading: Those of `load_tiles`, the function of the loading warp.
        warps: How many there are, with their registers.
        adding: The arguments of `add_shares`, the function of the warps that add, if there are
            such, before the warp's number.
    """
    single = [("load_tiles", [*loading])]
    adding = [*adding]
    if adding:
        single += [("add_shares", [*adding, f"tl.constexpr({which})"]) for which in range(ADDING)]
    yield "show_to_copies()"
    yield "run_apart("
    yield f"{INDENT}["
    for part in range(warps.computing):
        arguments = f"{', '.join(computing)}, tl.constexpr({part})"
        yield f"{INDENT * 2}({compute}, ({arguments})),"
    for name, given in single:
        yield f"{INDENT * 2}({name}, ({', '.join(given)})),"
    yield f"{INDENT}],"
    others = warps.computing - 1
    yield f"{INDENT}{[4] * others + [1] * len(single)},"
    registers = [warps.computing_registers] * others + [warps.loading_registers] * len(single)
    yield f"{INDENT}{registers},"
    yield ")"
