"""A training step on two processes, as DDP and FSDP2 do it, against one process on the whole
batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import patterncc

ROOT = Path(__file__).resolve().parents[2]
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


def weights_of_a_rank(way: str, rank: int, ranks: int) -> dict[str, Tensor]:
    """The weights after a step on a part of the batch, gathered."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    part = batch().chunk(ranks)[rank]
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


def work(rank: int, ranks: int, folder: Path) -> None:
    """What each process does: a step in every way, compared with one process."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=ranks)
    wanted = weights_of_one_process()
    for way in WAYS:
        found = weights_of_a_rank(way, rank, ranks)
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
    code = (
        "import os, sys, pathlib; from tests.front.test_autograd_distributed import work; "
        "work(int(sys.argv[1]), 2, pathlib.Path(sys.argv[2])); "
        "sys.stdout.flush(); os._exit(0)"  # gloo's threads may abort an ordinary exit
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (printed, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
        assert printed.splitlines() == [f"right: {way}" for way in WAYS]
