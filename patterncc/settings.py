"""Every environment variable that patterncc reads, with its default. Nothing else reads the
environment.

Values travel from here as arguments: no module below the front reads a setting.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from patterncc.dsl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SWITCH = {"0": False, "off": False, "no": False, "false": False} | {
    "1": True,
    "on": True,
    "yes": True,
    "true": True,
}


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable: what it is for, in the words that `patterncc doctor` and the docs
    print."""

    name: str
    meaning: str
    default: str


VARIABLES = (
    Variable(
        "PATTERNCC_CACHE_DIR",
        "folder of generated kernels and tuned configurations",
        "the user's cache folder for patterncc",
    ),
    Variable("PATTERNCC_DEBUG", "1: the command line shows tracebacks, as with --debug", "0"),
    Variable(
        "PATTERNCC_ISOLATE",
        "what `isolate` is if not given; 1: on GPUs NaN and infinity reach only what sees them; "
        "0: nothing is done for that",
        "not set",
    ),
    Variable("PATTERNCC_ONE_PASS", "0: gradients take two kernels, without float32 sums", "1"),
    Variable("PATTERNCC_TUNED", "0: calls take no tuned configurations", "1"),
    Variable(
        "PATTERNCC_VERIFY",
        "1: check block programs after every pass, and tables on GPUs",
        "0",
    ),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says.

    Attributes:
        cache_dir: Folder of generated kernels and tuned configurations; absolute, may not exist
            yet.
        debug: Whether the command line shows tracebacks.
        verify: Whether block programs are checked after lowering and after every pass, and the
            entries of tables on GPUs.
        tuned: Whether calls take the configurations that were tuned for them.
        isolate: Whether kernels on GPUs keep numbers that are not finite from rows and keys that do
            not see them, where a pattern is compiled without saying so; None: from rows, where that
            takes no launch.
        one_pass: Whether one kernel may compute all gradients, which takes float32 sums of the
            query's size.
    """

    cache_dir: Path
    debug: bool = False
    verify: bool = False
    tuned: bool = True
    isolate: bool | None = None
    one_pass: bool = True

    @staticmethod
    def read(environment: Mapping[str, str]) -> Settings:
        """The settings of an environment; an empty value counts as none.

        Raises:
            ConfigError: A variable has a value that it cannot have.
        """
        isolate = environment.get("PATTERNCC_ISOLATE", "")
        return Settings(
            cache_dir=_folder(environment.get("PATTERNCC_CACHE_DIR", "")),
            debug=_switch("PATTERNCC_DEBUG", environment.get("PATTERNCC_DEBUG", "")),
            verify=_switch("PATTERNCC_VERIFY", environment.get("PATTERNCC_VERIFY", "")),
            tuned=_switch("PATTERNCC_TUNED", environment.get("PATTERNCC_TUNED", "1") or "1"),
            isolate=_switch("PATTERNCC_ISOLATE", isolate) if isolate else None,
            one_pass=_switch(
                "PATTERNCC_ONE_PASS", environment.get("PATTERNCC_ONE_PASS", "1") or "1"
            ),
        )


@functools.cache
def settings() -> Settings:
    """The settings of this process, read at the first call and kept."""
    return Settings.read(os.environ)


def isolates(asked: bool | None) -> bool | None:
    """Must numbers that are not finite reach only rows and keys that see them? As it was asked
    for, else as the environment has it; None: rows, where that takes no launch."""
    return settings().isolate if asked is None else asked


def kernel_folder() -> Path:
    """Where generated kernels are written."""
    return settings().cache_dir / "src"


def _folder(value: str) -> Path:
    if not value:
        import platformdirs  # here, because most imports of patterncc never need it

        return platformdirs.user_cache_path("patterncc", appauthor=False)
    return Path(value).expanduser().absolute()


def _switch(name: str, value: str) -> bool:
    if not value:
        return False
    state = _SWITCH.get(value.strip().lower())
    if state is None:
        raise ConfigError(f"{name} is set to {value!r}", tuple(_SWITCH))
    return state
