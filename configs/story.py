"""A recipe's header: its title, the published numbers and costs, its notes and the comment of its file."""

import textwrap
from collections.abc import Mapping
from typing import Any

from carryover.configs.catalogue import Place
from carryover.configs.expected import as_list, cost_line, result_lines
from carryover.configs.reading import leading_comment
from carryover.configs.tables import STORY_KEYS, Row, fill, titles

_WIDTH = 118


def story(place: Place, row: Row, content: Mapping[str, Any]) -> str:
    """Return the header of the recipe at `place`; `content` are its keys, its bases' included.

    Raises UserError for a template's word that means nothing, and for numbers that were not published.
    """
    said = _said(row)
    comment = leading_comment(place.path)
    if place.row is None:
        end = next((i for i, line in enumerate(comment[1:], 1) if not line.startswith(" ")), len(comment))
        lines, comment = comment[:end], comment[end:]
    else:
        title = filled(row, content, f"{place}: title", str(said.get("title", place.name)))
        lines = _wrapped(title.rstrip(".") + ".")
    expected = filled(row, content, f"{place}: expected", said.get("expected"), names=True)
    results = result_lines(expected, str(place))
    if results:
        lines += _wrapped(f"Expected: {'; '.join(results)}.")
    if "cost" in said:
        cost = filled(row, content, f"{place}: cost", str(said["cost"]))
        lines += _wrapped(f"Hardware and cost: {cost_line(cost, expected, str(place))}.")
    for note in said["note"]:
        lines += _wrapped(filled(row, content, f"{place}: note", note))
    return "\n".join([*lines, *comment])


def filled(row: Row, content: Mapping[str, Any], where: str, value: Any, names: bool = False) -> Any:
    """Fill in a template's words: an axis by its entry's title (or name), a dotted key by the row's value."""
    if isinstance(value, Mapping):
        return {k: filled(row, content, where, v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(row, content, where, v, names) for v in value]
    if not isinstance(value, str):
        return value
    axes = row.entries if names else dict(titles(row))
    return fill(value, where, lambda word: axes.get(word, _at(content, word)), list(axes))


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
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
