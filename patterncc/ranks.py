"""The ranks of a job that `torch.distributed` joins agree on what was tuned.

Ranks on different machines have different caches, and a config that differs between ranks makes
them wait for each other. Nothing here runs by itself: each function is a collective call.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch.distributed

from patterncc import tuned
from patterncc.autotune.entries import Entry
from patterncc.dsl.errors import PatternccError, TuningError

_dist: Any = torch.distributed


def ranks() -> int:
    """How many processes the job has; 1 where none was initialised."""
    return int(_dist.get_world_size()) if _dist.is_available() and _dist.is_initialized() else 1


def share_tuned(group: Any = None) -> int:
    """Gives all ranks of a job the tuned configs of its first one: what that rank's user and
    patterncc itself have. Other ranks use no others from then on, whatever their files hold.

    A collective call, to be made once by every rank, after `init_process_group` and before the
    first attention. In a process without a job it does nothing.

    Args:
        group: The process group; the default one if not given.

    Returns:
        How many configs there are.

    Raises:
        TuningError: This rank can make no sense of them: it runs another version of patterncc.
    """
    store = tuned.store()
    if ranks() == 1:
        return len(store.entries())
    text = None
    if _dist.get_rank(group) == 0:
        text = json.dumps([(entry.as_json(), origin) for entry, origin in store.entries()])
    found = json.loads(_from_first(text, group))
    try:
        entries = [(Entry.from_json(document), origin) for document, origin in found]
    except PatternccError as error:
        raise TuningError(f"the first rank's tuned configs mean nothing here: {error}") from None
    store.give(entries, alone=True)
    tuned.forget()
    return len(entries)


def agreed(find: Callable[[], Entry]) -> Entry:
    """The entry that the first rank finds, on every rank; a collective call where there is a job.

    Args:
        find: Asked on the first rank alone.

    Raises:
        PatternccError: What `find` raised; on other ranks a `TuningError` with its words.
    """
    if ranks() == 1:
        return find()
    message: dict[str, Any] = {}
    failure: PatternccError | None = None
    if _dist.get_rank() == 0:
        try:
            message = {"entry": find().as_json()}
        except PatternccError as error:
            message, failure = {"error": str(error)}, error
    answer = json.loads(_from_first(json.dumps(message), None))
    if failure is not None:
        raise failure
    if "error" in answer:
        raise TuningError(f"the first rank could not tune: {answer['error']}")
    return Entry.from_json(answer["entry"])


def _from_first(text: str | None, group: Any) -> str:
    """The text of the first rank of a group."""
    box = [text]
    source = _dist.get_global_rank(group, 0) if group is not None else 0
    _dist.broadcast_object_list(box, src=source, group=group)
    assert box[0] is not None
    return box[0]
