"""Tables of recipes: one file that says what a paper's table varies, in place of a file for each of its rows.

::

    # Three target branches under two methods.              the story that all rows share
    base: _imagenet                                         what all rows have in common: keys of the recipe
    matrix:                                                 axis -> entry -> keys that the entry lays over it
      method:
        simclr: {title: SimCLR, method: {name: simclr, tau: 0.2}}
        byol: {title: BYOL, method: {name: byol}, note: The predictor is not stated.}
      epochs:
        "": {title: "100"}                                  an entry without a name
        _800ep: {title: "800", schedule: {epochs: 800}}
    exclude: [{method: simclr, epochs: _800ep}]             combinations that are no rows
    name: "{method}_r50{epochs}"                            what a row is called, from its entries' names
    title: "{method}, {backbone.arch}, {epochs} epochs"     its first line, from their titles
    expected: {paper: unigrad, table: 3, method: "{method}"}
    cost: not reported                                      see `configs.expected`
    rows: {byol_r50: {note: Diverged twice.}}               what only one row has

Bases are laid first: the table's, those of the row's entries in the order of the axes, the row's own in
`rows`. The keys follow in the same order. In `title`, `source`, `expected`, `cost` and `note`, ``{axis}`` is
the entry's title (in `expected` its name) and ``{section.key}`` a value of the row. `exclude` may list
several entries of an axis. A file of the user's own may be a table as well; its recipes are called
``mine.yaml:ROW``.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carryover.configs.errors import UserError
from carryover.configs.nearest import nearest

STORY_KEYS = ("title", "expected", "cost", "note")
"""Keys that say what a recipe reproduces; they may be in a file, an axis' entry or a row of `rows`."""
TABLE_KEYS = ("matrix", "exclude", "name", "rows")
"""Keys that only a table has."""

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.]*)\}")

Layer = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of a table: the layers that it is made of, and the entry of each axis that it stands for."""

    name: str
    entries: Mapping[str, str]
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Table:
    """The rows of one file, by name in the order of its axes."""

    path: Path
    rows: Mapping[str, Row]

    def row(self, name: str | None) -> Row:
        """Return one row; raises UserError for a name that no row has, and where none is given."""
        if name is not None and name in self.rows:
            return self.rows[name]
        guess = nearest(name, list(self.rows)) if name else None
        rows = f"its {len(self.rows)} rows: {', '.join(self.rows)}"
        if name is None:
            first = next(iter(self.rows))
            raise UserError(f"{self.path} is a table; choose one row, as in {self.path}:{first}, of {rows}")
        hint = f"; did you mean '{guess}'?" if guess else f"; {rows}"
        raise UserError(f"{self.path} has no row '{name}'{hint}")


def is_table(content: Mapping[str, Any]) -> bool:
    """Return whether a file's content is a table of recipes."""
    return "matrix" in content


def read_table(path: Path, content: Mapping[str, Any]) -> Table:
    """Expand a table into its rows.

    Raises
    ------
    UserError
        An axis that is no mapping of entries, a name that names no axis or gives two rows one name, an
        exclusion or a row of `rows` that does not exist; each names the file and the nearest valid word.
    """
    axes = _axes(path, content["matrix"])
    template = content.get("name")
    if not isinstance(template, str):
        raise UserError(
            f'{path}: name: a table must state how its rows are named, as in "{{{next(iter(axes))}}}"'
        )
    excluded = _exclusions(path, content.get("exclude") or [], axes)
    common = {k: v for k, v in content.items() if k not in TABLE_KEYS}
    own = {str(k): v for k, v in _mapping(path, "rows", content.get("rows")).items()}
    rows: dict[str, Row] = {}
    for combination in itertools.product(*axes.values()):
        entries = dict(zip(axes, combination, strict=True))
        if any(all(entries[axis] in names for axis, names in e.items()) for e in excluded):
            continue
        name = fill(template, f"{path}: name", entries.get, list(axes))
        if name in rows:
            raise UserError(f"{path}: name: {rows[name].entries} and {entries} are both called '{name}'")
        chosen = [axes[axis][entry] for axis, entry in entries.items()]
        last = _mapping(path, f"rows: {name}", own.get(name))
        rows[name] = Row(name, entries, (common, *chosen, *([last] if last else [])))
    if not rows:
        raise UserError(f"{path}: every combination of the matrix is excluded")
    for name in own:
        if name not in rows:
            raise UserError(f"{path}: rows: {_unknown(name, list(rows), 'row')}")
    return Table(path, rows)


def fill(template: str, where: str, value: Callable[[str], Any], known: Sequence[str]) -> str:
    """Replace every ``{word}`` of a template by its value.

    `value` gives None for a word that stands for nothing, which is a UserError that suggests one of `known`.
    """

    def replaced(match: re.Match[str]) -> str:
        found = value(match[1])
        if found is None:
            raise UserError(f"{where}: {_unknown(match[1], known, 'axis')}")
        return str(found)

    return _PLACEHOLDER.sub(replaced, template)


def titles(row: Row) -> Iterator[tuple[str, str]]:
    """Yield each axis of a row with the title of its entry: the entry's name where it has no title."""
    for layer, (axis, entry) in zip(row.layers[1:], row.entries.items(), strict=False):
        yield axis, str(layer.get("title", entry))


def _axes(path: Path, matrix: Any) -> dict[str, dict[str, Layer]]:
    axes = {}
    for axis, entries in _mapping(path, "matrix", matrix).items():
        where = f"matrix: {axis}"
        named = _mapping(path, where, entries).items()
        found = {str(k): _mapping(path, f"{where}: {k}", v) for k, v in named}
        if not found:
            raise UserError(f"{path}: {where}: has no entries")
        for entry, layer in found.items():
            wrong = next((k for k in TABLE_KEYS if k in layer), None)
            if wrong:
                raise UserError(f"{path}: {where}: {entry}: '{wrong}' belongs to the whole table")
        axes[str(axis)] = found
    if not axes:
        raise UserError(f"{path}: matrix: has no axes")
    return axes


def _exclusions(
    path: Path, excluded: Any, axes: Mapping[str, Mapping[str, Layer]]
) -> list[dict[str, list[str]]]:
    """Return each exclusion as axis -> names of entries; an axis that is not named means all its entries."""
    if not isinstance(excluded, list):
        raise UserError(f"{path}: exclude: expected a list of mappings, axis: entry")
    found = []
    for exclusion in excluded:
        names = {}
        for axis, entry in _mapping(path, "exclude", exclusion).items():
            if axis not in axes:
                raise UserError(f"{path}: exclude: {_unknown(str(axis), list(axes), 'axis')}")
            names[str(axis)] = [str(e) for e in (entry if isinstance(entry, list) else [entry])]
            for name in names[axis]:
                if name not in axes[axis]:
                    raise UserError(f"{path}: exclude: {axis}: {_unknown(name, list(axes[axis]), 'entry')}")
        found.append(names)
    return found


def _mapping(path: Path, where: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{path}: {where}: expected a mapping of keys, found {type(value).__name__}")
    return value


def _unknown(word: str, known: Sequence[str], what: str) -> str:
    guess = nearest(word, known)
    hint = f"did you mean '{guess}'?" if guess else f"there are: {', '.join(known)}"
    return f"no {what} is called '{word}'; {hint}"
