"""How the texts of arguments are read: counts such as 64K, lists, and NAME=VALUE."""

import argparse
import math


def read_integer(text: str) -> int:
    """An integer, perhaps in K or M of 1024."""
    sizes = {"K": 1 << 10, "M": 1 << 20}
    factor = sizes.get(text[-1:].upper(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        return int(digits) * factor
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer; write 4096, 64K or 1M") from None


def read_count(text: str) -> int:
    """An integer of at least 1."""
    number = read_integer(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be 1 or more")
    return number


def read_count_or_zero(text: str) -> int:
    """An integer of at least 0."""
    return 0 if text == "0" else read_count(text)


def read_parameter(text: str) -> tuple[str, int]:
    """`window=4K`: the name and the integer."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, read_integer(value)


def read_real(text: str) -> tuple[str, float]:
    """`cap=50`: the name and the finite number."""
    name, equals, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not equals or not name.isidentifier() or not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=X with a finite number X")
    return name, number


def read_lengths(text: str) -> tuple[int, ...]:
    """`1023,64K`: the numbers, in the order given."""
    return tuple(map(read_integer, text.split(",")))


def read_table(text: str) -> tuple[str, str]:
    """`doc=0,100,300`: the name, and the list or file as it is written."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE or NAME=LIST")
    return name, value


def read_numbers(text: str) -> tuple[int, ...]:
    """`0,3,5` and `0..8`: the numbers, in the order given."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        try:
            numbers += range(int(first), int(last)) if dots else [int(part)]
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list such as 0,3,5 or 0..8"
            ) from None
    if not numbers or min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} names no layers or heads")
    return tuple(dict.fromkeys(numbers))
