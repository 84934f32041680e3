"""Read a table in a csv file as exporters and spreadsheets write it: any separator (torch-free)."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from carryover.configs import UserError
from carryover.core.data.names import read_text

_SEPARATORS = ",;\t|"


@dataclass(frozen=True)
class Table:
    """The rows of a csv file.

    Attributes
    ----------
    titles
        The first row as it is written.
    rows
        (line number, cells) of every row that is not empty, the first one included.
    """

    file: Path
    titles: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]

    @property
    def body(self) -> tuple[tuple[int, tuple[str, ...]], ...]:
        """The rows below the titles."""
        return self.rows[1:]

    def column(self, names: Iterable[str]) -> int | None:
        """Return the index of the first of `names` that is a title; only letters and digits count."""
        plain = [plain_title(title) for title in self.titles]
        return next((plain.index(name) for name in map(plain_title, names) if name in plain), None)

    def stated_column(self, what: str, columns: Mapping[str, str], names: Sequence[str]) -> int | None:
        """Return the column that a recipe's ``columns`` says to be `what`, else one of the usual `names`.

        Raises UserError where the recipe names a title that is not there.
        """
        if what not in columns:
            return self.column(names)
        found = self.column([columns[what]])
        if found is None:
            raise UserError(
                f"{self.file}: no column is called {columns[what]!r} (data.columns.{what});"
                f" its titles: {', '.join(self.titles)}"
            )
        return found


def read_table(file: Path) -> Table:
    """Read a csv file in any encoding, separated by commas, semicolons, tabs or bars.

    Raises UserError where it cannot be read or holds nothing.
    """
    try:
        lines = read_text(file).splitlines()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); expected a csv file") from None
    first = next((line for line in lines if line.strip()), "")
    separator = max(_SEPARATORS, key=first.count)
    rows = []
    reader = csv.reader(lines, delimiter=separator)
    for row in reader:
        cells = tuple(cell.strip() for cell in row)
        if any(cells):
            rows.append((reader.line_num, cells))
    if not rows:
        raise UserError(f"{file}: holds no row")
    return Table(file, rows[0][1], tuple(rows))


def plain_title(title: str) -> str:
    """Return a column's title without what people write differently."""
    return "".join(character for character in title.lower() if character.isalnum())
