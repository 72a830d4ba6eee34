"""Selection: the small tables that library patterns read, chosen from data or computed from a rule.

Reference implementations in plain torch: as their sources define them, ties to the lowest index,
nothing tuned for speed. Each returns a dict of run-time parameters by name, so that
`attention(query, key, value, **selection.moba(query, key))` runs.
"""

from patterncc.selection.cache import quest_pages, snapkv
from patterncc.selection.ladder import lacache, lacache_after_prompt
from patterncc.selection.prefill import block_topk, minference_kernel, moba, vertical_slash
from patterncc.selection.random_plan import bigbird_random

__all__ = [
    "bigbird_random",
    "block_topk",
    "lacache",
    "lacache_after_prompt",
    "minference_kernel",
    "moba",
    "quest_pages",
    "snapkv",
    "vertical_slash",
]
