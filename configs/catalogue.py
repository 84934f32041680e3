"""Locations of recipes: a file of its own, or a row of a table."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from carryover.configs.errors import UserError
from carryover.configs.nearest import nearest
from carryover.configs.reading import read_yaml, version_of
from carryover.configs.tables import Row, Table, is_table, read_table

_OWN = re.compile(r"(?P<path>.*\.ya?ml)(:(?P<row>.+))?", re.DOTALL)
_COMMANDS = {"pretrain": "pretrain", "transfer": "evaluate", "pipelines": "run"}
_MOST_NAMED = 20
_MATRIX = re.compile(r"^matrix:", re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """Location of one recipe: its file, and its row if the file is a table."""

    path: Path
    row: str | None = None

    @property
    def name(self) -> str:
        """The recipe's name: its row's, or its file's without the suffix."""
        return self.path.stem if self.row is None else self.row

    def __str__(self) -> str:
        return str(self.path) if self.row is None else f"{self.path}: {self.row}"


def place_in_file(path: Path, row: str | None = None) -> Place:
    """Return the place of a recipe in a file of the user's own.

    Raises UserError where a table is given without a row (its rows are named), a row that it has not, or a
    row of a file that is no table.
    """
    content = read_yaml(path)
    if not is_table(content):
        if row is not None:
            raise UserError(f"{path} is one recipe, no table: it has no row '{row}'")
        return Place(path)
    return Place(path, table_of(path).row(row).name)


def place_of(kind: str, folder: Path, name_or_path: str | Path) -> Place:
    """Return the place of a recipe given by name, by path, or by path and row (``mine.yaml:ROW``).

    Raises
    ------
    UserError
        No such file, row or name; answered with the nearest one.
    """
    own = _OWN.fullmatch(str(name_or_path))
    if own:
        path = Path(own["path"]).expanduser()
        if not path.is_file():
            raise UserError(f"{path}: no such recipe file{_near(path)}")
        return place_in_file(path, own["row"])
    if _is_path(str(name_or_path)):
        path = Path(name_or_path).expanduser()
        raise UserError(f"{path}: no recipe file; it is given with its ending .yaml{_near(path)}")
    shipped = folder / f"{name_or_path}.yaml"
    if shipped.is_file() and not _holds_matrix(shipped):
        return Place(shipped)
    rows = _rows(folder)
    if str(name_or_path) in rows:
        return rows[str(name_or_path)]
    if shipped.is_file():
        within = ", ".join(table_of(shipped).rows)
        raise UserError(f"{kind} '{name_or_path}' is a table of several recipes; name one of them: {within}")
    for other, command in _COMMANDS.items():
        if other != kind and str(name_or_path) in recipes_in(folder.parent / other):
            asked = f"`carryover {_COMMANDS[kind]}`" if kind in _COMMANDS else kind
            raise UserError(f"'{name_or_path}' is a recipe of `carryover {command}`, not of {asked}")
    called = f"recipe of `carryover {_COMMANDS[kind]}`" if kind in _COMMANDS else f"{kind} recipe"
    beside = " (a file of your own is given by its path, with its ending .yaml)"
    meant = _meant(kind, str(name_or_path), folder)
    raise UserError(f"no {called} is called '{name_or_path}'; {meant}{beside}")


def _meant(kind: str, name: str, folder: Path) -> str:
    """Return which recipe of this kind, or of another one, was probably meant; else which there are."""
    names = recipes_in(folder)
    if guess := nearest(name, names):
        return f"did you mean '{guess}'?"
    for other, command in _COMMANDS.items():
        if other != kind and (guess := nearest(name, recipes_in(folder.parent / other))):
            return f"did you mean '{guess}', a recipe of `carryover {command}`?"
    if len(names) > _MOST_NAMED:
        return f"`carryover recipes {kind}` lists all {len(names)}"
    return f"there are: {', '.join(names) or 'none'}"


def name_of(name_or_path: str) -> str:
    """Return what a recipe that is given by name, path, or path and row is called; no file is looked at."""
    own = _OWN.fullmatch(name_or_path)
    return name_or_path if own is None else own["row"] or Path(own["path"]).stem


def _is_path(name: str) -> bool:
    return name.startswith((".", "~")) or "/" in name


def _near(path: Path) -> str:
    """Name the file beside `path` that was probably meant."""
    beside = path.parent if path.parent.is_dir() else None
    names = [p.name for p in beside.glob("*.y*ml")] if beside else []
    guess = next((n for n in names if n in (f"{path.name}.yaml", f"{path.name}.yml")), None)
    guess = guess or nearest(path.name, names)
    return f"; did you mean '{path.parent / guess}'?" if guess else ""


def recipes_in(folder: Path) -> list[str]:
    """List the recipes of a folder by name; files that start with an underscore are bases only."""
    rows = _rows(folder)
    return sorted([*rows, *(p.stem for p in _files(folder) if not _holds_matrix(p))])


def row_at(place: Place) -> Row:
    """Return what a recipe is made of; a file that is no table is its own only layer."""
    if place.row is None:
        return Row(place.path.stem, {}, (read_yaml(place.path),))
    return table_of(place.path).row(place.row)


def table_of(path: Path) -> Table:
    """Return a file's table, expanded once for each version of the file."""
    return _table(path, version_of(path))


@lru_cache(maxsize=256)
def _table(path: Path, version: tuple[int, int]) -> Table:
    return read_table(path, read_yaml(path))


@cache
def _rows(folder: Path) -> Mapping[str, Place]:
    """Return the rows of all tables of a folder by name; raises UserError for a name that is given twice."""
    found = {p.stem: Place(p) for p in _files(folder) if not _holds_matrix(p)}
    for path in _files(folder):
        for name in table_of(path).rows if _holds_matrix(path) else ():
            if name in found:
                raise UserError(f"two recipes are called '{name}': in {found[name].path} and in {path}")
            found[name] = Place(path, name)
    return {name: place for name, place in found.items() if place.row is not None}


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.yaml") if not p.name.startswith("_"))


@cache
def _holds_matrix(path: Path) -> bool:
    # In a shipped file top-level keys begin a line. Parsing every file to see would be slow for one load.
    return _MATRIX.search(path.read_text(encoding="utf-8")) is not None
