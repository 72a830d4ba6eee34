"""Compile one-line sparse attention patterns to fused kernels.

This file only lists the public names. Each is loaded when it is first used, so that
`import patterncc` and `import patterncc.dsl` load neither torch nor any other large package.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patterncc.api import attention, compile, diff
    from patterncc.codegen.facts.compare import Comparison
    from patterncc.compiled import Attention
    from patterncc.dsl.errors import (
        ArgumentError,
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
    from patterncc.dsl.pattern import Pattern
    from patterncc.ranks import share_tuned

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Attention",
    "Comparison",
    "ConfigError",
    "InternalError",
    "Pattern",
    "PatternError",
    "PatternSyntaxError",
    "PatternTypeError",
    "PatternccError",
    "TuningError",
    "UnknownNameError",
    "UnsupportedError",
    "__version__",
    "attention",
    "compile",
    "diff",
    "share_tuned",
]

# Public name -> the module that defines it.
_EXPORTS: dict[str, str] = {
    "ArgumentError": "patterncc.dsl.errors",
    "Attention": "patterncc.compiled",
    "Comparison": "patterncc.codegen.facts.compare",
    "ConfigError": "patterncc.dsl.errors",
    "InternalError": "patterncc.dsl.errors",
    "Pattern": "patterncc.dsl.pattern",
    "PatternError": "patterncc.dsl.errors",
    "PatternSyntaxError": "patterncc.dsl.errors",
    "PatternTypeError": "patterncc.dsl.errors",
    "PatternccError": "patterncc.dsl.errors",
    "TuningError": "patterncc.dsl.errors",
    "UnknownNameError": "patterncc.dsl.errors",
    "UnsupportedError": "patterncc.dsl.errors",
    "attention": "patterncc.api",
    "compile": "patterncc.api",
    "diff": "patterncc.api",
    "share_tuned": "patterncc.ranks",
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
