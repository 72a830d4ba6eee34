"""A training step on two processes, as DDP and FSDP2 do it, against one process on the whole
batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import patterncc
from tests.front.ranks import RANKS, run_ranks

WAYS = ("ddp", "fsdp2", "fsdp2 with checkpoints")


class Block(nn.Module):
    """Attention with its projections: 4 query heads on 2 key heads of size 8."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.project = nn.Linear(16, 64)
        self.attention = patterncc.compile(text)
        self.mix = nn.Linear(32, 16)

    def forward(self, state: Tensor) -> Tensor:
        heads = self.project(state).unflatten(-1, (8, 8)).transpose(1, 2)
        query, key, value = heads.split([4, 2, 2], dim=1)
        out = self.attention(query, key, value)
        mixed: Tensor = self.mix(out.transpose(1, 2).flatten(2))
        return state + mixed


def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(Block("causal"), Block("causal and (window(5) or sinks(2))"))


def batch() -> Tensor:
    return torch.randn(4, 33, 16, generator=torch.Generator().manual_seed(4))


def train(module: nn.Module, state: Tensor) -> None:
    """One step; the loss is a mean over the batch."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    torch.autograd.backward((module(state) ** 2).mean())
    optimizer.step()


def weights_of_one_process() -> dict[str, Tensor]:
    whole = model()
    train(whole, batch())
    return whole.state_dict()


def weights_of_a_rank(way: str, rank: int) -> dict[str, Tensor]:
    """The weights after a step on a part of the batch, gathered."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    part = batch().chunk(RANKS)[rank]
    module = model()
    if way == "ddp":
        wrapped = DistributedDataParallel(module)
        train(wrapped, part)
        return module.state_dict()
    if way == "fsdp2 with checkpoints":
        apply_activation_checkpointing(module, check_fn=lambda part: isinstance(part, Block))
    for block in module:
        fully_shard(block)
    fully_shard(module)
    train(module, part)
    return {
        name.replace("_checkpoint_wrapped_module.", ""): weight.full_tensor()
        for name, weight in module.state_dict().items()
    }


def work(rank: int, folder: Path) -> None:
    """What each process does: a step in every way, compared with one process."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=RANKS)
    wanted = weights_of_one_process()
    for way in WAYS:
        found = weights_of_a_rank(way, rank)
        for name, weight in wanted.items():
            torch.testing.assert_close(found[name], weight)
        print("right:", way)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_step_on_two_processes(tmp_path: Path) -> None:
    assert any(
        not torch.equal(one, other)
        for one, other in zip(
            weights_of_one_process().values(), model().state_dict().values(), strict=True
        )
    )
    for printed in run_ranks("tests.front.test_autograd_distributed", tmp_path, timeout=120):
        assert printed.splitlines() == [f"right: {way}" for way in WAYS]
