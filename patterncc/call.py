"""`Call`: the numbers of one attention call, for what looks at a pattern without tensors.

Loads no torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy.typing as npt

from patterncc.codegen.choice import Candidate, candidates
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.lower import first_row_step, lower
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.mask import variables
from patterncc.dsl.pattern import Pattern

LIMIT = 1 << 30  # of lengths, offsets and layer numbers

_BY_HEAD = frozenset({"head", "kv_head"})


@dataclass(frozen=True)
class Call:
    """A pattern and the sizes it is looked at with.

    Attributes:
        pattern: Its run-time numbers have their values as defaults.
        q_len: Rows.
        kv_len: Keys.
        q_offset: Position of row 0.
        heads: Query heads.
        kv_heads: Key/value heads; divides `heads`.
        layers: Layers of the model.
        batch: Index in the batch.
        tables: The tables that the pattern reads, int64 or bool, of its rank; of segments the
            `cu_seqlens`. Without them a call can be described, not counted.
        examples: Names of the tables and numbers that nobody gave, and where they are from.
    """

    pattern: Pattern
    q_len: int
    kv_len: int
    q_offset: int
    heads: int = 1
    kv_heads: int = 1
    layers: int = 1
    batch: int = 0
    tables: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict, compare=False)
    examples: Mapping[str, str] = field(default_factory=dict, compare=False)

    @staticmethod
    def of(
        pattern: Pattern,
        q_len: int,
        kv_len: int | None = None,
        q_offset: int | None = None,
        *,
        heads: int = 1,
        kv_heads: int | None = None,
        layers: int = 1,
        batch: int = 0,
        tables: Mapping[str, npt.NDArray[Any]] | None = None,
        examples: Mapping[str, str] | None = None,
    ) -> "Call":
        """A call with what was not given filled in: as many keys as rows, the rows last.

        Raises:
            ConfigError: A size cannot be, or a run-time number has no value.
        """
        kv_len = q_len if kv_len is None else kv_len
        q_offset = kv_len - q_len if q_offset is None else q_offset
        kv_heads = heads if kv_heads is None else kv_heads
        least = {"q_len": 1, "kv_len": 1, "heads": 1, "kv_heads": 1, "layers": 1, "batch": 0}
        given = {
            "q_len": q_len,
            "kv_len": kv_len,
            "heads": heads,
            "kv_heads": kv_heads,
            "layers": layers,
            "batch": batch,
            "q_offset": q_offset,
        }
        for name, size in given.items():
            low = least.get(name, -LIMIT)
            if not low <= size <= LIMIT:
                raise ConfigError(f"{name} is {size}, which must be in {low} .. {LIMIT}")
        if heads % kv_heads:
            raise ConfigError(f"heads is {heads}, which must be a multiple of kv_heads, {kv_heads}")
        if pattern.open_numbers:
            raise ConfigError(f"no value was given for {_names(pattern.open_numbers)}")
        return Call(
            pattern,
            q_len,
            kv_len,
            q_offset,
            heads,
            kv_heads,
            layers,
            batch,
            tables or {},
            examples or {},
        )

    def env(self, head: int = 0, layer: int = 0) -> dict[str, Any]:
        """The scalars of one head of one layer and the tables, by name."""
        return {
            "q_len": self.q_len,
            "kv_len": self.kv_len,
            "q_offset": self.q_offset,
            "head": head,
            "kv_head": head // (self.heads // self.kv_heads),
            "layer": layer,
            "batch": self.batch,
            **self.sizes,
            **self.tables,
            **self.pattern.defaults,  # all numbers have one: `of` checks it
        }

    @property
    def sizes(self) -> dict[str, int]:
        """What a pattern may divide by."""
        return {"heads": self.heads, "kv_heads": self.kv_heads, "layers": self.layers}

    def require_tables(self) -> None:
        """Checks that there is a table for each that the pattern reads.

        Raises:
            ConfigError: There is none for one.
        """
        missing = [table.name for table in self.pattern.tables if table.name not in self.tables]
        if missing:
            raise ConfigError(f"no table was given for {_names(missing)}")

    @property
    def within(self) -> bool:
        """Whether the rows end within the keys, and begin where programs that are lowered so take
        it for granted (`first_row_step`)."""
        if not 0 <= self.q_offset <= self.kv_len - self.q_len:
            return False
        return self.q_offset == 0 or self.q_offset % first_row_step(self.pattern, self.sizes) == 0

    @cached_property
    def reads(self) -> frozenset[str]:
        """Names of the coordinates and sizes that the pattern reads."""
        return variables(self.pattern.body)

    @property
    def differs_by_head(self) -> bool:
        """Whether heads may have different masks."""
        return bool(_BY_HEAD & self.reads)

    @property
    def differs_by_layer(self) -> bool:
        """Whether layers may have different masks."""
        return "layer" in self.reads

    def program(self, block_q: int, block_k: int) -> BlockProgram:
        """The program for a tile shape in the positions of the call, both directions.

        Raises:
            UnsupportedError: The pattern has a term that has no lowering.
        """
        return lower(self.pattern, block_q, block_k, sizes=self.sizes, within=self.within)

    def candidates(
        self, block_q: int, block_k: int, *, patches: bool = True
    ) -> tuple[Candidate, ...]:
        """The ways to compute the pattern in tiles of a shape, with their counted costs; their
        programs are those of the forward direction.

        Args:
            block_q: Rows of a query tile.
            block_k: Keys of a key tile.
            patches: Whether tiles may be patches of a raster, which kernels with score terms and
                the CPU do not visit.

        Raises:
            UnsupportedError: The pattern has a term that has no lowering.
        """
        return candidates(
            self.pattern,
            block_q,
            block_k,
            sizes=self.sizes,
            within=self.within,
            patches=patches,
        )


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
