"""Counts in messages: a number and its noun."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``1 stage``, ``3 stages``; `plural` is for other plurals than with s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
