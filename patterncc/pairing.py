"""Two patterns that are looked at together: their values, and the sizes that both share.

Loads no torch.
"""

from collections.abc import Mapping

from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.loader import source_of
from patterncc.dsl.parser import parse
from patterncc.dsl.pattern import Pattern
from patterncc.dsl.suggest import did_you_mean


def load_pair(
    left: tuple[str, str | None],
    right: tuple[str, str | None],
    names: tuple[str | None, str | None],
    values: Mapping[str, int],
) -> tuple[Pattern, Pattern]:
    """Reads two patterns, and binds each value in those of the two that have the parameter.

    Args:
        left, right: The text and what messages call it.
        names: Which pattern of each text is meant; the last one if None.
        values: Values of parameters by name.

    Raises:
        PatternError: A text or a value is wrong.
        ConfigError: Neither pattern has such a parameter.
    """
    declared = [
        _parameters(text, name) for (text, _), name in zip((left, right), names, strict=True)
    ]
    patterns = []
    for (text, file), name, own in zip((left, right), names, declared, strict=True):
        mine = {key: value for key, value in values.items() if key in own}
        patterns.append(load(text, name=name, file=file, **mine))
    known = sorted(declared[0] | declared[1])
    for key in values:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ConfigError(
                f"neither pattern has a parameter `{key}`" + (f"; {hint}" if hint else ""),
                tuple(known),
            )
    return patterns[0], patterns[1]


def known_sizes(heads: int | None, kv_heads: int | None, layers: int | None) -> dict[str, int]:
    """The sizes that are given, by name.

    Raises:
        ConfigError: One is less than 1, or the heads cannot share the key/value heads.
    """
    given = {"heads": heads, "kv_heads": kv_heads, "layers": layers}
    sizes = {name: size for name, size in given.items() if size is not None}
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} is {size}, which must be 1 or more")
    if heads is not None and kv_heads is not None and heads % kv_heads:
        raise ConfigError(f"heads is {heads}, which must be a multiple of kv_heads, {kv_heads}")
    return sizes


def _parameters(text: str, name: str | None) -> frozenset[str]:
    """Names of the parameters of the pattern that is meant; none where the text has mistakes."""
    for definition in reversed(parse(source_of(text)).program.definitions):
        if name is None or (definition.name is not None and definition.name.text == name):
            return frozenset(parameter.name.text for parameter in definition.parameters)
    return frozenset()
