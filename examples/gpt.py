"""A small GPT that learns Python's documentation byte by byte, dense and under a pattern.

One pattern serves all layers: even ones see a window, odd ones everything before them. The script
trains the same model twice from the same weights, on the same batches: with causal attention in
every layer, and with the pattern. It prints both losses and draws their curves. Nothing is
downloaded: the text is the documentation that comes with Python.

    python examples/gpt.py
    python examples/gpt.py --pattern "if layer % 4 == 3 then causal else streaming(4, 64)"

On a GPU, what a training step takes at a long context, beside other kinds of attention:

    python examples/gpt.py --speed --context 16384 --window 1024 --width 1024 --heads 8 --batch 1
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

# Before torch is imported: threads that spin while they wait take several times as long on a busy
# machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm, scaled_dot_product_attention

import patterncc

VOCABULARY = 256  # bytes
HELD_OUT = 0.1  # of the text, never trained on

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Attention of a layer: query, key, value `[batch, heads, length, head_dim]` and its number."""


def main(argv: Sequence[str] | None = None) -> int:
    """Trains or measures; 1 if the pattern's model learned nothing."""
    options = parse(argv)
    sizes = Sizes(options.layers, options.width, options.heads, options.context)
    return speed(options, sizes) if options.speed else learn(options, sizes)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--window", type=int, default=64, help="keys that even layers see (64)")
    parser.add_argument("--pattern", help="another pattern; it may read `layer`")
    parser.add_argument("--steps", type=int, default=200, help="training steps (200)")
    parser.add_argument("--context", type=int, default=512, help="tokens of a row (512)")
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch (8)")
    parser.add_argument("--layers", type=int, default=4, help="layers (4)")
    parser.add_argument("--width", type=int, default=128, help="of the model (128)")
    parser.add_argument("--heads", type=int, default=4, help="attention heads of a layer (4)")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate (0.003)")
    parser.add_argument("--out", type=Path, default=Path("gpt"), help="folder for results (gpt)")
    parser.add_argument("--speed", action="store_true", help="measure training steps instead")
    options = parser.parse_args(argv)
    for name in ("window", "steps", "context", "batch", "layers", "width", "heads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.width % (2 * options.heads):
        parser.error("--width must be a multiple of twice --heads")
    return options


# ------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class Sizes:
    """Of a model."""

    layers: int
    width: int
    heads: int
    context: int


class Block(nn.Module):
    """Attention and a perceptron, each on normalised input and added to it."""

    def __init__(self, sizes: Sizes, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, sizes.heads
        self.query_key_value = nn.Linear(sizes.width, 3 * sizes.width, bias=False)
        self.out = nn.Linear(sizes.width, sizes.width, bias=False)
        self.up = nn.Linear(sizes.width, 4 * sizes.width, bias=False)
        self.down = nn.Linear(4 * sizes.width, sizes.width, bias=False)
        nn.init.zeros_(self.out.weight)  # a block begins as the identity
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        parts = self.query_key_value(normal(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # [batch, heads, length, head_dim]
        query, key = rotate(normal(query), rotation), rotate(normal(key), rotation)
        seen = attend(query, key, value, self.layer)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(normal(x))))


class GPT(nn.Module):
    """Bytes to logits of the next byte, `[batch, length]` to `[batch, length, 256]`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes, layer) for layer in range(sizes.layers))
        self.head = nn.Linear(sizes.width, VOCABULARY, bias=False)
        angles = torch.outer(
            torch.arange(sizes.context),
            1e4 ** -torch.linspace(0, 1, sizes.width // sizes.heads // 2),
        )
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, attend: Attend) -> Tensor:
        x = self.embedding(tokens)
        length = tokens.shape[1]
        rotation = self.cosines[:length].to(x.dtype), self.sines[:length].to(x.dtype)
        for block in self.blocks:
            x = block(x, rotation, attend)
        return self.head(normal(x))


def normal(x: Tensor) -> Tensor:
    return rms_norm(x, x.shape[-1:])


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding (Su et al., arXiv:2104.09864)."""
    (cosines, sines), (a, b) = rotation, x.chunk(2, dim=-1)
    turned = (a * cosines - b * sines, a * sines + b * cosines)
    return torch.cat(turned, dim=-1).to(x.dtype)


# ------------------------------------------------------------------------------- kinds of attention


def alternating(window: int) -> str:
    """The pattern of a model whose even layers see a window."""
    return f"if layer % 2 == 1 then causal else window({window})"


def dense(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
    """Causal attention in every layer."""
    return scaled_dot_product_attention(query, key, value, is_causal=True)


def under(pattern: str) -> Attend:
    """Attention under a pattern."""
    attention = patterncc.compile(pattern)

    def attend(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        return attention(query, key, value, layer=layer)

    return attend


def masked(pattern: str, context: int, device: torch.device) -> Attend:
    """Dense attention with the pattern's masks as tensors, those of two layers in turn."""
    attention = patterncc.compile(pattern)
    masks = [attention.mask(context, layer=layer).to(device) for layer in (0, 1)]

    def attend(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        return scaled_dot_product_attention(query, key, value, attn_mask=masks[layer % 2])

    return attend


def flex(window: int, context: int, device: torch.device) -> Attend:
    """FlexAttention with the masks of `alternating`, written by hand and built beforehand."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def window_mask(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q - k < window)

    def causal_mask(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return q >= k

    masks = [
        create_block_mask(mask, None, None, context, context, device=device)
        for mask in (window_mask, causal_mask)
    ]
    compiled = torch.compile(flex_attention)

    def attend(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        return compiled(query, key, value, block_mask=masks[layer % 2])

    return attend


# --------------------------------------------------------------------------------------- learning


def read_text() -> tuple[Tensor, Tensor]:
    """The bytes to learn and those held out, uint8."""
    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    numbers = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    held_out = int(len(numbers) * HELD_OUT)
    return numbers[:-held_out], numbers[-held_out:]


def batches(text: Tensor, options: argparse.Namespace, device: torch.device) -> Iterator[Tensor]:
    """Rows of a byte more than the context, int64 `[batch, context + 1]`, the same each time."""
    generator = torch.Generator().manual_seed(0)
    last = len(text) - options.context - 1
    if last < 1:
        sys.exit(f"--context {options.context} is longer than the text of {len(text)} bytes")
    while True:
        starts = torch.randint(last, (options.batch,), generator=generator)
        rows = torch.stack([text[start : start + options.context + 1] for start in starts.tolist()])
        yield rows.long().to(device)


def loss_of(model: GPT, rows: Tensor, attend: Attend) -> Tensor:
    """The mean loss of a byte, in bits."""
    device = rows.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        logits = model(rows[:, :-1], attend)
    return cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten()) / math.log(2)


@dataclass(frozen=True)
class Run:
    """What a training run gave: the loss of each step, the loss on held out text, seconds."""

    losses: list[float]
    held_out: float
    seconds: float


def train(name: str, attend: Attend, options: argparse.Namespace, sizes: Sizes) -> Run:
    """Trains a model from the same start as every other run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = GPT(sizes).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.95))
    warm_up = max(options.steps // 20, 1)

    def rate(step: int) -> float:
        return min((step + 1) / warm_up, 0.55 + 0.45 * math.cos(math.pi * step / options.steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    learned, held_out = read_text()
    source = batches(learned, options, device)
    losses: list[float] = []
    start = time.perf_counter()
    for step in range(1, options.steps + 1):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, next(source), attend)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step == options.steps or step % max(options.steps // 10, 1) == 0:
            seconds = time.perf_counter() - start
            print(f"{name:8} step {step:5}  {losses[-1]:6.3f} bits a byte  {seconds:6.1f} s")
    seconds = time.perf_counter() - start
    source = batches(held_out, options, device)
    with torch.no_grad():
        tests = [loss_of(model, next(source), attend).item() for _ in range(8)]
    return Run(losses, statistics.mean(tests), seconds)


def learn(options: argparse.Namespace, sizes: Sizes) -> int:
    """Trains the model dense and under the pattern; prints, draws and saves what came of it."""
    pattern = options.pattern or alternating(options.window)
    kinds = {"dense": dense, "pattern": under(pattern)}
    runs = {name: train(name, attend, options, sizes) for name, attend in kinds.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"pattern": pattern, "torch": torch.__version__}
    report |= {name: vars(run) for name, run in runs.items()}
    (options.out / "losses.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"\npattern: {pattern}")
    for name, run in runs.items():
        print(f"{name:8} held out {run.held_out:6.3f} bits a byte  {run.seconds:6.1f} s")
    draw(runs, pattern, options.out / "losses.png")
    # A byte drawn blindly costs 8 bits; what has been learned must be worth something.
    return 0 if runs["pattern"].held_out < 7 else 1


def draw(runs: dict[str, Run], pattern: str, path: Path) -> None:
    """The losses of all runs, smoothed over a tenth of the steps, as a picture."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed (pip install 'patterncc[plot]')")
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, run in runs.items():
        span = max(len(run.losses) // 10, 1)
        smooth = torch.tensor(run.losses).unfold(0, span, 1).mean(-1)
        label = f"{name}: {run.held_out:.3f} on held out text"
        axes.plot(range(span, len(run.losses) + 1), smooth, label=label)
    axes.set(xlabel="step", ylabel="bits a byte", title=pattern)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    print(f"curves: {path}")


# ------------------------------------------------------------------------------------------ speed


def speed(options: argparse.Namespace, sizes: Sizes) -> int:
    """Prints tokens a second and peak memory of training steps for each kind of attention."""
    if not torch.cuda.is_available():
        sys.exit("--speed needs a GPU")
    device = torch.device("cuda")
    pattern = options.pattern or alternating(options.window)
    kinds: dict[str, Callable[[], Attend]] = {
        "pattern": lambda: under(pattern),
        "flex_attention": lambda: flex(options.window, options.context, device),
        "dense, masks": lambda: masked(pattern, options.context, device),
        "dense, all causal": lambda: dense,
    }
    if options.pattern:  # the others have no masks for it
        del kinds["flex_attention"], kinds["dense, masks"]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, pattern: {pattern}")
    print(f"{options.batch} x {options.context} tokens, {sizes}")
    learned, _ = read_text()
    rows = next(batches(learned, options, device))
    results = {}
    for name, make in kinds.items():
        try:
            results[name] = measure(make(), rows, options, sizes)
        except torch.cuda.OutOfMemoryError:
            print(f"{name:18} out of memory")
            continue
        step, memory, loss = results[name]
        tokens = rows[:, 1:].numel() / step
        print(f"{name:18} {tokens:9.0f} tokens/s  {memory / 2**30:6.2f} GiB  loss {loss:.4f}")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    report |= {"pattern": pattern, "options": {k: str(v) for k, v in vars(options).items()}}
    report |= {"seconds, bytes, loss": results}
    (options.out / "speed.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


def measure(
    attend: Attend, rows: Tensor, options: argparse.Namespace, sizes: Sizes
) -> tuple[float, int, float]:
    """Median seconds of a training step, peak bytes, and the loss after all of them."""
    torch.manual_seed(0)
    model = GPT(sizes).to(rows.device)
    # So low that losses of the same attention, computed differently, stay together.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    times = []
    loss = torch.zeros(())
    for step in range(12):
        if step == 2:  # everything has been compiled
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, rows, attend)
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:]), torch.cuda.max_memory_allocated(), loss.item()


if __name__ == "__main__":
    sys.exit(main())
