"""Importers: patterns from the files and masks of other systems.

Each returns an `Imported`: the text of a pattern, and the tables and numbers to call it with.

    imported = importers.duo_attention("attn_patterns/Llama-3-8B-Instruct-Gradient-1048k/run")
    attention = patterncc.compile(imported.text)
    out = attention(query, key, value, layer=3, **imported.values)

Files and masks are checked: what is wrong with one is said with the table, the index and the value.
"""

from patterncc.importers.block_mask import block_mask
from patterncc.importers.blocks import bsr, csr_blocks
from patterncc.importers.duo import duo_attention
from patterncc.importers.imported import Imported
from patterncc.importers.minference import MInferenceHeads, minference

__all__ = [
    "Imported",
    "MInferenceHeads",
    "block_mask",
    "bsr",
    "csr_blocks",
    "duo_attention",
    "minference",
]
