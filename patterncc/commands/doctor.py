"""`patterncc doctor`: what works on this machine, tried out."""

import argparse
from dataclasses import asdict

from rich.text import Text

from patterncc import health
from patterncc.commands import console

_STYLES = {"ok": "green", "missing": "yellow", "warning": "yellow", "failed": "bold red"}


def run(args: argparse.Namespace) -> int:
    """Prints what was found; 1 if something that should work fails."""
    with console.progress().status("trying things out ..."):
        findings = list(health.examine())
    failed = any(finding.state == "failed" for finding in findings)
    if args.json:
        console.print_json({"ok": not failed, "findings": [asdict(each) for each in findings]})
        return int(failed)
    out = console.output()
    width = max(len(finding.name) for finding in findings if len(finding.name) < 30)
    topic = ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            out.print(Text(topic, "bold"))
        state = Text(f"{finding.state:<8}", _STYLES[finding.state])
        out.print(Text.assemble("  ", state, f"{finding.name:<{width}}  {finding.detail}"))
    return int(failed)
