"""A parser of arguments that says what is wrong in one line, as all other errors are said."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from patterncc.dsl.suggest import did_you_mean

USAGE = 2


class Parser(argparse.ArgumentParser):
    """Argparse's parser, without the usage of all options before each error."""

    def error(self, message: str) -> NoReturn:
        """Ends with the message and where the usage is found.

        Raises:
            SystemExit: Always.
        """
        message = message.removeprefix("argument ")
        self.exit(USAGE, f"error: {message}\n  = hint: see `{self.prog} --help`\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Names the nearest choice besides all of them."""
        if action.choices is None or value in action.choices:
            return
        hint = did_you_mean(str(value), map(str, action.choices))
        text = f"invalid choice {value!r}" + (f" ({hint})" if hint else "")
        legal = ", ".join(map(str, action.choices))
        raise argparse.ArgumentError(action, f"{text}; legal: {legal}")
