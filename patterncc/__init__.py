"""Compile one-line sparse attention patterns to fused kernels.

This file only lists the public names. Each is loaded when it is first used, so that
`import patterncc` and `import patterncc.dsl` load neither torch nor any other large package.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patterncc.dsl.errors import (
        ConfigError,
        InternalError,
        PatternccError,
        PatternError,
        PatternSyntaxError,
        PatternTypeError,
        TuningError,
        UnknownNameError,
        UnsupportedError,
    )

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "InternalError",
    "PatternError",
    "PatternSyntaxError",
    "PatternTypeError",
    "PatternccError",
    "TuningError",
    "UnknownNameError",
    "UnsupportedError",
    "__version__",
]

# Public name -> the module that defines it.
_EXPORTS: dict[str, str] = {
    "ConfigError": "patterncc.dsl.errors",
    "InternalError": "patterncc.dsl.errors",
    "PatternError": "patterncc.dsl.errors",
    "PatternSyntaxError": "patterncc.dsl.errors",
    "PatternTypeError": "patterncc.dsl.errors",
    "PatternccError": "patterncc.dsl.errors",
    "TuningError": "patterncc.dsl.errors",
    "UnknownNameError": "patterncc.dsl.errors",
    "UnsupportedError": "patterncc.dsl.errors",
}


def __getattr__(name: str) -> object:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
