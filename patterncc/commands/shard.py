"""`patterncc shard`: which keys ranks fetch from each other in context parallelism."""

import argparse
from dataclasses import asdict, replace
from typing import Any

from patterncc.call import Call
from patterncc.codegen.facts.sharding import PLACEMENTS, ShardPlan, Shards, VisiblePairs, shard_plan
from patterncc.commands import console
from patterncc.commands.inputs import pattern_of, problem_of
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.live_text import live_text
from patterncc.shard_text import format_plan


def run(args: argparse.Namespace) -> int:
    """Prints the plan."""
    call = Call.of(
        pattern_of(args),
        args.q_len,
        heads=args.heads,
        kv_heads=args.kv_heads,
        layers=args.layers,
    )
    if args.layer and max(args.layer) >= call.layers:
        raise ConfigError(f"--layer {max(args.layer)}: there are {call.layers}, from 0")
    shards = Shards(args.ranks, args.q_len, args.placement, args.stripe)
    with console.progress().status("planning ..."):
        visible = VisiblePairs(call.pattern, call.q_len, call.sizes)
        plan = _plan(call, shards, args, visible)
        others: list[tuple[str, ShardPlan | str]] = []
        for placement in PLACEMENTS:
            if placement != shards.placement and not args.json:
                try:
                    other = _plan(call, replace(shards, placement=placement), args, visible)
                    others.append((placement, other))
                except UnsupportedError as error:
                    others.append((placement, error.message))
    if args.json:
        console.print_json({"text": call.pattern.text} | _document(plan))
    else:
        print(format_plan(plan, call.pattern, others), end="")
    return 0


def _plan(call: Call, shards: Shards, args: argparse.Namespace, visible: VisiblePairs) -> ShardPlan:
    return shard_plan(
        call.pattern, shards, problem_of(args), call.sizes, layers=args.layer, visible=visible
    )


def _document(plan: ShardPlan) -> dict[str, Any]:
    return {
        "shards": asdict(plan.shards),
        "key_bytes": plan.key_bytes,
        "received_bytes": list(plan.received_bytes),
        "all_gather_bytes": list(plan.all_gather_bytes),
        "pairs": None if plan.pairs is None else list(plan.pairs),
        "groups": [
            {
                "members": [list(member) for member in group.members],
                "kind": group.kind,
                "needs": live_text(group.needs),
                "ranks": [asdict(rank) for rank in group.ranks],
            }
            for group in plan.groups
        ],
    }
