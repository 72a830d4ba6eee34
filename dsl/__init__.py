"""The pattern language: text in, checked and typed patterns out. Knows no device and no tensor."""

if __name__ != "patterncc.dsl":
    raise ImportError("import this package as patterncc.dsl")

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patterncc.dsl.loader import diagnose, load

__all__ = ["diagnose", "load"]


def __getattr__(name: str) -> object:
    # Loaded when first used: `import patterncc.dsl.errors` must not wait for the parser.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module("patterncc.dsl.loader"), name)
    globals()[name] = value
    return value
