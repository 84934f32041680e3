"""Numbers as a message has them: with their nouns, and with their signs."""

from collections.abc import Sized

Number = int | Sized
"""A number, or a collection that is counted."""


def counted(number: Number, noun: str, plural: str | None = None) -> str:
    """Return ``1 class`` or ``2 classes``; `plural` may hold a verb as well: ``images are``."""
    n = _number(number)
    return f"{n:,} {noun if n == 1 else plural or _plural(noun)}"


def counted_of(part: Number, whole: Number, noun: str, singular: str, plural: str) -> str:
    """Return ``1 of 3 classes has``: a part of a whole, with the verb that agrees with the part."""
    return f"{_number(part):,} of {counted(whole, noun)} {singular if _number(part) == 1 else plural}"


def signed(value: float, digits: int = 1) -> str:
    """Return a difference with its sign, ``+1.2``; ``0.0`` for what rounds to it, which has none."""
    text = f"{value:+.{digits}f}"
    return text if any(c in "123456789" for c in text) else text[1:]


def _number(counted: Number) -> int:
    return counted if isinstance(counted, int) else len(counted)


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"
