"""Characters that are no part of the language but look like, or mean, something that is."""

# ruff: noqa: RUF001

import unicodedata

_SIGNS = {
    "≤": "<=",
    "⩽": "<=",
    "≦": "<=",
    "≥": ">=",
    "⩾": ">=",
    "≧": ">=",
    "≠": "!=",
    "≡": "==",
    "∧": "and",
    "⋀": "and",
    "∨": "or",
    "⋁": "or",
    "¬": "not",
    "∈": "in",
    "⊤": "true",
    "⊥": "false",
    "−": "-",
    "–": "-",
    "—": "-",
    "‐": "-",
    "‑": "-",
    "×": "*",
    "⋅": "*",
    "·": "*",
    "∗": "*",
    "÷": "//",
    "∕": "//",
    "⁄": "//",
    "‥": "..",
    "…": "..",
    "∶": ":",
    "‚": ",",
    "，": ",",
    "、": ",",
    "。": ".",
    "＃": "#",
    "⟨": "<",
    "⟩": ">",
    "‹": "<",
    "›": ">",
}

# Letters of other alphabets that print like Latin ones, by Latin letter.
_LETTERS = {
    "a": "аαａ",
    "b": "Ьƅ",
    "c": "сϲ",
    "d": "ԁ",
    "e": "еҽ",
    "g": "ɡ",
    "h": "һ",
    "i": "іιı",
    "j": "јϳ",
    "k": "кκ",
    "l": "ӏⅼ",
    "n": "пη",
    "o": "оοσ",
    "p": "рρ",
    "q": "ԛ",
    "r": "г",
    "s": "ѕ",
    "t": "тτ",
    "u": "υս",
    "v": "ѵν",
    "w": "ѡω",
    "x": "хχ",
    "y": "уγ",
    "z": "ᴢ",
    "A": "АΑ",
    "B": "ВΒ",
    "C": "СϹ",
    "E": "ЕΕ",
    "H": "НΗ",
    "I": "ІΙ",
    "J": "Ј",
    "K": "КΚ",
    "M": "МΜ",
    "N": "Ν",
    "O": "ОΟ",
    "P": "РΡ",
    "S": "Ѕ",
    "T": "ТΤ",
    "X": "ХΧ",
    "Y": "ҮΥ",
    "Z": "Ζ",
}
_LATIN = {foreign: latin for latin, others in _LETTERS.items() for foreign in others}


def ascii_spelling(character: str) -> str | None:
    """What to write instead of a character, if that can be told."""
    if character in _SIGNS:
        return _SIGNS[character]
    if character in _LATIN:
        return _LATIN[character]
    if unicodedata.category(character) in ("Zs", "Zl", "Zp") or character == "\r":
        return " "
    plain = unicodedata.normalize("NFKD", character)
    plain = "".join(mark for mark in plain if not unicodedata.combining(mark))
    if plain and plain.isascii() and plain.isprintable() and plain != character:
        return plain
    digit = unicodedata.decimal(character, None)
    return None if digit is None else str(digit)


def describe(character: str) -> str:
    """How to call a character in a message: itself where it shows, and its name."""
    number = f"U+{ord(character):04X}"
    if character.isascii() and character.isprintable():
        return f"`{character}`"
    name = unicodedata.name(character, "")
    if name and character.isprintable() and not unicodedata.combining(character):
        return f"`{character}` ({number}, {name})"
    return f"{number} ({name})" if name else number
