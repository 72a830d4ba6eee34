"""The store of tuned configs where the settings have it. Loads no torch."""

from __future__ import annotations

import functools

from patterncc import __version__
from patterncc.autotune.store import TunedStore
from patterncc.settings import settings

WRITTEN_BY = f"patterncc {__version__}"


@functools.cache
def store() -> TunedStore:
    """This user's tuned configs and those that came with patterncc."""
    return TunedStore(settings().cache_dir)
