"""A pattern on its way to a kernel, stage by stage, for people to look at.

Holds no tensor and imports no torch; what a stage means is in `codegen`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

from patterncc.codegen.choice import candidates
from patterncc.codegen.gpu.config import (
    Emitter,
    KernelConfig,
    check_config,
    default_config,
    narrowed,
    suited,
    visits_patches,
)
from patterncc.codegen.gpu.emitter_choice import (
    EmitterChoice,
    choose_emitter,
    counted_pattern,
    emitter_of,
)
from patterncc.codegen.gpu.gluon.reasons import HOPPER
from patterncc.codegen.key_width import key_width
from patterncc.codegen.lower import initial_transposed
from patterncc.codegen.passes import PASSES, after_each
from patterncc.codegen.printer import format_program
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.codes import error_for
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.loader import source_of
from patterncc.dsl.parser import parse
from patterncc.dsl.pattern import Pattern
from patterncc.listing import format_pattern, format_tree
from patterncc.programs import takes_patches
from patterncc.settings import kernel_folder, settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from patterncc.codegen.gpu.kernel_source import KernelSource
    from patterncc.codegen.gpu.launch import CompiledKernel
    from patterncc.codegen.ir import Passes
    from patterncc.dsl.syntax import Program

DEFAULT_PROBLEM = Problem("bfloat16", 128, 128)
DEFAULT_TARGET = "cuda:90"


class Stage(NamedTuple):
    """One text that compilation goes through.

    Attributes:
        name: As in `--emit NAME`.
        meaning: What it is, in a few words.
        suffix: Of a file that holds it.
    """

    name: str
    meaning: str
    suffix: str


STAGES = (
    Stage("ast", "syntax tree of the text", ".txt"),
    Stage(
        "mask", "checked pattern: its numbers, and the mask with lets and calls written out", ".txt"
    ),
    Stage("ir", "block program: which tiles are visited, full or partial", ".txt"),
    Stage("triton", "source of the forward kernel", ".py"),
    Stage("ttir", "Triton IR", ".mlir"),
    Stage("ttgir", "Triton GPU IR", ".mlir"),
    Stage("ptx", "assembly of NVIDIA GPUs", ".ptx"),
    Stage("amdgcn", "assembly of AMD GPUs", ".s"),
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)


def pass_names() -> tuple[str, ...]:
    """What `--after` can name: lowering, then the passes in their order."""
    return ("lower", *(name for name, _ in PASSES))


class Compilation:
    """A pattern on its way to a kernel, for one problem and one target.

    Each stage is computed when it is asked for, once, and kept.

    Attributes:
        source: The text it is read from; the canonical text where it came as a `Pattern`.
        problem: Shape class of the calls.
        target: What machine code is for.
        sizes: `heads`, `kv_heads`, `layers`, where the pattern divides by them.
        within: Whether rows are taken to end within the keys, as they do in most calls.
    """

    def __init__(
        self,
        source: str | Pattern,
        *,
        name: str | None = None,
        file: str | None = None,
        values: Mapping[str, int] | None = None,
        problem: Problem = DEFAULT_PROBLEM,
        target: str = DEFAULT_TARGET,
        config: KernelConfig | None = None,
        sizes: Mapping[str, int] | None = None,
        within: bool = True,
    ) -> None:
        """Keeps the arguments; nothing is computed and nothing is checked yet.

        Args:
            source: A text, the name of a library pattern, or a checked pattern.
            name: Which pattern of a text, if not the last.
            file: What messages call a text.
            values: Parameters of a text by name.
            problem: Shape class of the calls.
            target: Such as `cuda:90` or `hip:gfx942`; no such device is needed.
            config: Tile shape and other choices; the default of problem and target if not given.
            sizes: `heads`, `kv_heads`, `layers`, where the pattern divides by them.
            within: Whether rows may be taken to end within the keys.
        """
        if isinstance(source, Pattern):
            self.__dict__["pattern"] = source  # the cached property below, known already
            source = source.text
        self.source = source_of(source, file)
        self.problem = problem
        self.target = target
        self.sizes = dict(sizes or {})
        self.within = within
        self._name = name
        self._values = dict(values or {})
        self._config = config
        self._programs: dict[tuple[int, int, bool], dict[str, Passes]] = {}

    @functools.cached_property
    def syntax(self) -> Program:
        """The syntax tree of the whole text.

        Raises:
            PatternError: The text does not parse.
        """
        parsed = parse(self.source)
        if parsed.diagnostics:
            raise error_for(parsed.diagnostics)
        return parsed.program

    @functools.cached_property
    def pattern(self) -> Pattern:
        """The checked pattern.

        Raises:
            PatternError: The text is wrong.
        """
        return load(self.source.text, name=self._name, file=self.source.name, **self._values)

    @functools.cached_property
    def config(self) -> KernelConfig:
        """Tile shape and other choices of the first kernel; others differ in order and stages.

        Raises:
            ConfigError: It cannot work for this problem on this target.
        """
        config = self._config
        if config is None:
            config = suited(
                self._base, self.problem, self.target, self._lowered(self._base)["lower"][0]
            )
        check_config(config, self.problem, self.target)
        return config

    @functools.cached_property
    def emitter(self) -> EmitterChoice:
        """What writes the forward kernels where no config is given, and why.

        Raises:
            UnsupportedError: For a term that has no lowering.
        """

        def lowered(block_q: int, block_k: int, emitter: Emitter) -> Passes:
            return self._passes(block_q, block_k, emitter)[pass_names()[-1]]

        pattern = counted_pattern(self.pattern, self.sizes or {}, self.pattern.defaults)
        return choose_emitter(pattern, self.problem, self.target, lowered, self.sizes)

    @functools.cached_property
    def _base(self) -> KernelConfig:
        """The default before each kernel adapts it: the tile shape is that of all."""
        special = self.emitter.config
        if special is not None:
            return special
        base = default_config(self.problem, self.target)

        def lowered(block_k: int) -> Passes:
            return self._passes(base.block_q, block_k, "triton")[pass_names()[-1]]

        return narrowed(base, key_width(self.pattern, lowered, base.block_k, self.sizes))

    def programs(self, after: str | None = None) -> Passes:
        """The block programs after a pass over them; after the last one if none is named.

        Raises:
            ConfigError: There is no such pass.
            UnsupportedError: For a term that has no lowering.
        """
        names = pass_names()
        if after is not None and after not in names:
            raise ConfigError(f"there is no pass {after!r}", names)
        return self._lowered(self.config)[after or names[-1]]

    def _lowered(self, config: KernelConfig) -> dict[str, Passes]:
        return self._passes(config.block_q, config.block_k, config.emitter)

    def _passes(self, block_q: int, block_k: int, emitter: Emitter) -> dict[str, Passes]:
        patches = takes_patches(self.problem.terms) and visits_patches(emitter)
        tile = (block_q, block_k, patches)
        if tile not in self._programs:
            ways = candidates(
                self.pattern,
                block_q,
                block_k,
                sizes=self.sizes,
                within=self.within,
                patches=patches,
            )
            chosen = min(ways, key=lambda way: way.cost)
            programs = [
                dict(after_each(initial_transposed(program), check=settings().verify))
                for program in chosen.initial
            ]
            self._programs[tile] = {
                name: tuple(each[name] for each in programs) for name in pass_names()
            }
        return self._programs[tile]

    @functools.cached_property
    def kernels(self) -> tuple[KernelSource, ...]:
        """The sources of the forward kernels, in the order in which they run.

        Raises:
            UnsupportedError: The problem has no kernel, or the pattern no lowering.
        """
        programs = self.programs()
        return tuple(
            emitter_of(self.config)(
                program,
                self.problem,
                self._config or suited(self._base, self.problem, self.target, program),
                resumes=number > 0,
                hands_on=number < len(programs) - 1,
            )
            for number, program in enumerate(programs)
        )

    @functools.cached_property
    def compiled(self) -> tuple[CompiledKernel, ...]:
        """The kernels compiled for the target.

        Raises:
            ConfigError: The target is no target.
            UnsupportedError: Triton is missing.
        """
        # Here, because it loads triton and torch.
        from patterncc.codegen.gpu.launch import compile_for

        folder = kernel_folder()
        return tuple(compile_for(kernel, self.target, folder=folder) for kernel in self.kernels)

    def text(self, stage: str, after: str | None = None) -> str:
        """The text of a stage: the same at every run, with a final line end.

        Args:
            stage: One of `STAGE_NAMES`.
            after: For `ir`: one of `pass_names()`; the last if not given.

        Raises:
            ConfigError: There is no such stage or pass, or the target has none or is wrong.
            PatternError: The text is wrong.
            UnsupportedError: The pattern cannot be compiled to that stage.
        """
        if stage not in STAGE_NAMES:
            raise ConfigError(f"there is no stage {stage!r}", STAGE_NAMES)
        if after is not None and stage != "ir":
            raise ConfigError(f"a pass was named for the stage {stage!r}", ("ir",))
        match stage:
            case "ast":
                return format_tree(self.syntax)
            case "mask":
                return format_pattern(self.pattern)
            case "ir":
                return "\n".join(map(format_program, self.programs(after)))
            case "triton":
                return "\n\n".join(kernel.text for kernel in self.kernels)
        if stage not in self.stages():
            raise ConfigError(f"{self.target} has no stage {stage!r}", self.stages())
        return "\n".join(str(kernel.stages[stage]) for kernel in self.compiled)

    def stages(self) -> tuple[str, ...]:
        """The stages that the target has, in their order."""
        without = {"ptx" if self.target.startswith("hip") else "amdgcn"}
        if self.target == HOPPER and self.config.emitter == "gluon":
            without.add("ttir")  # Gluon starts at the next stage
        return tuple(name for name in STAGE_NAMES if name not in without)

    def files(self) -> Iterator[tuple[str, str]]:
        """Every stage of the target as the name and the text of a file, in order.

        The program is there after each pass: `02-ir-after-lower.txt`; the last has the plain name.
        """
        number = 0
        for stage in STAGES:
            if stage.name not in self.stages():
                continue
            for after in pass_names() if stage.name == "ir" else (None,):
                last = after is None or after == pass_names()[-1]
                name = stage.name if last else f"{stage.name}-after-{after}"
                yield f"{number:02}-{name}{stage.suffix}", self.text(stage.name, after)
                number += 1
