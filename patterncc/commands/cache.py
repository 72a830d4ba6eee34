"""`patterncc cache`: the tuned configs of this user and those that came with patterncc."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from patterncc.autotune.entries import Entry
from patterncc.autotune.store import Origin
from patterncc.commands import console
from patterncc.commands.run import duration
from patterncc.dsl.errors import ConfigError
from patterncc.tuned import store

_TAKES_FILE = ("export", "import")


def run(args: argparse.Namespace) -> int:
    """Lists, shows, exports, imports or removes entries."""
    if (args.action in _TAKES_FILE) != (args.argument is not None) and args.action != "show":
        takes = "a file" if args.action in _TAKES_FILE else "no file"
        raise ConfigError(f"cache {args.action} takes {takes}")
    return {
        "list": _list,
        "show": _show,
        "export": _export,
        "import": _import,
        "clear": _clear,
    }[args.action](args)


def _list(args: argparse.Namespace) -> int:
    found, aside = store().entries(), store().aside()
    if args.json:
        console.print_json(
            {
                "folder": str(store().folder),
                "entries": [_document(entry, origin) for entry, origin in found],
                "set_aside": [str(path) for path in aside],
            }
        )
        return 0
    out = console.output()
    if not found:
        out.print(Text(f"nothing has been tuned; {store().folder} is where it would be"))
    else:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("pattern", "device", "phase", "type", "head", "keys", "config", "time", ""):
            of_pattern = title == "pattern"
            table.add_column(title, no_wrap=not of_pattern, min_width=24 if of_pattern else None)
        for entry, origin in found:
            table.add_row(*_row(entry, origin))
        out.print(table)
    for path in aside:
        out.print(Text(f"set aside: {path}", "yellow"))
    return 0


def _row(entry: Entry, origin: Origin) -> Iterable[str]:
    key, config = entry.key, entry.config
    faster = "" if entry.speedup is None else f"{entry.speedup:.2f}x, {origin}"
    if not entry.beats_default:
        faster = f"default, {origin}"
    return (
        key.pattern,
        key.device,
        key.phase,
        key.dtype,
        str(key.head_dim),
        f"{key.kv_len:,}",
        f"{config['block_q']}x{config['block_k']}",
        duration(entry.seconds),
        faster or origin,
    )


def _show(args: argparse.Namespace) -> int:
    """Everything of the entries whose pattern or device has a text in it; of all without one."""
    wanted = (args.argument or "").lower()
    found = [
        (entry, origin)
        for entry, origin in store().entries()
        if wanted in entry.key.pattern.lower() or wanted in entry.key.device.lower()
    ]
    if wanted and not found:
        raise ConfigError(f"no entry's pattern or device has {args.argument!r} in it")
    console.print_json([_document(entry, origin) for entry, origin in found])
    return 0


def _export(args: argparse.Namespace) -> int:
    count = store().export(Path(args.argument))
    return _say(args, {"exported": count, "file": args.argument}, f"exported {_entries(count)}")


def _import(args: argparse.Namespace) -> int:
    new, known = store().import_(Path(args.argument))
    text = f"imported {_entries(new)}; {known} were there already"
    return _say(args, {"imported": new, "already": known}, text)


def _clear(args: argparse.Namespace) -> int:
    count, others = store().clear()
    text = f"removed {_entries(count)} from {store().folder}"
    if others:
        text += f", and {others} files that were set aside or of searches that were broken off"
    return _say(args, {"removed": count, "other_files": others}, text)


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


def _say(args: argparse.Namespace, document: dict[str, Any], text: str) -> int:
    if args.json:
        console.print_json(document)
    else:
        console.output().print(Text(text))
    return 0


def _document(entry: Entry, origin: Origin) -> dict[str, Any]:
    return {"origin": origin, "speedup": entry.speedup, **entry.as_json()}
