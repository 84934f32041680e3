"""A recipe's header: its title, the published numbers and costs, its notes and the comment of its file."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from carryover.configs.catalogue import Place, row_at
from carryover.configs.expected import as_list, cost_line, find_numbers, result_lines
from carryover.configs.reading import leading_comment
from carryover.configs.tables import STORY_KEYS, Row, fill, titles

_WIDTH = 118

Content = Callable[[], Mapping[str, Any]]
"""A recipe's keys, resolved only where a template names one."""


def title_lines(place: Place, content: Content) -> list[str]:
    """Return the first sentence of a header: a row's own title, or that of the comment of its file."""
    if place.row is None:
        comment = leading_comment(place.path)
        return comment[: _end_of_title(comment)]
    row = row_at(place)
    template = str(_said(row).get("title", place.name))
    return _wrapped(filled(row, content, f"{place}: title", template).rstrip(".") + ".")


def story(place: Place, content: Content) -> str:
    """Return the header of the recipe at `place`; `content` gives its keys, its bases' included.

    Raises UserError for a template's word that means nothing, and for numbers that were not published.
    """
    row = row_at(place)
    said = _said(row)
    content = cache(content)
    lines = title_lines(place, content)
    comment = leading_comment(place.path)
    if place.row is None:
        comment = comment[len(lines) :]
    expected = filled(row, content, f"{place}: expected", said.get("expected"), names=True)
    results, costs = find_numbers(expected, str(place))
    sentences = result_lines(expected, results)
    if sentences:
        lines += _wrapped(f"Expected: {'; '.join(sentences)}.")
    if "cost" in said:
        cost = filled(row, content, f"{place}: cost", str(said["cost"]))
        lines += _wrapped(f"Hardware and cost: {cost_line(cost, costs)}.")
    for note in said["note"]:
        lines += _wrapped(filled(row, content, f"{place}: note", note))
    return "\n".join([*lines, *comment])


def filled(row: Row, content: Content, where: str, value: Any, names: bool = False) -> Any:
    """Fill in a template's words: an axis by its entry's title (or name), a dotted key by the row's value."""
    if isinstance(value, Mapping):
        return {k: filled(row, content, where, v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(row, content, where, v, names) for v in value]
    if not isinstance(value, str):
        return value
    axes = row.entries if names else dict(titles(row))
    return fill(value, where, lambda w: axes[w] if w in axes else _at(content(), w), list(axes))


def _end_of_title(comment: Sequence[str]) -> int:
    """Return how many of a comment's lines its first sentence takes: those that continue it are indented."""
    return next((i for i, line in enumerate(comment[1:], 1) if not line.startswith(" ")), len(comment))


def _said(row: Row) -> dict[str, Any]:
    """Return what a row's layers say besides its keys: the last word on each, but all notes.

    An `expected` that is a mapping is laid over each mapping that an earlier layer has. An entry's title is
    the entry's, not the row's.
    """
    said: dict[str, Any] = {"note": []}
    for index, layer in enumerate(row.layers):
        of_entry = 0 < index <= len(row.entries)
        for key in STORY_KEYS:
            if key not in layer or (key == "title" and of_entry):
                continue
            value, before = layer[key], said.get(key)
            if key == "note":
                said["note"] = [*said["note"], *as_list(value)]
            elif key == "expected" and isinstance(value, Mapping) and before is not None:
                said[key] = [{**b, **value} if isinstance(b, Mapping) else b for b in as_list(before)]
            else:
                said[key] = value
    return said


def _at(content: Mapping[str, Any], key: str) -> Any:
    value: Any = content
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _wrapped(text: str) -> list[str]:
    """Return a sentence as lines of a header: those that continue it are indented."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > _WIDTH:
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines
