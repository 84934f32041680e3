"""Shared parts of the studies: tables on the terminal and in Markdown, and their source."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from carryover.configs import UserError
from carryover.configs.files import write_atomic

out_console = Console()


def make(out: Path | None) -> None:
    """Create the output directory before the work, not after it; raises UserError where that cannot be."""
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be an output directory: {error.strerror}") from error


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of text; on a terminal too narrow for it, lines wrap, and no number is cut off."""
    table = Table(title=title, box=None, title_justify="left", title_style="bold", pad_edge=False)
    for name in header:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    wide = Console(width=max(out_console.width, sum(widths) + 2 * len(widths), len(title)))
    wide.print(table)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the same table as Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def provenance_line(seed: int, seconds: float) -> str:
    """Date, seed, wall time, machine, torch and the code's revision."""
    from carryover.core.training import provenance

    torch = dict(provenance.library_versions())["torch"]
    return (
        f"{datetime.date.today().isoformat()}, seed {seed}, {seconds / 60:.1f} minutes,"
        f" {provenance.hardware()}, torch {torch}, revision {provenance.git_revision()}."
    )


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all, and say so."""
    write_atomic(path, text)
    out_console.print(Text(str(path)), soft_wrap=True)


def rounded(cosine: float) -> str:
    """Return a cosine with two decimals, and no minus before what rounds to nothing."""
    return f"{cosine:z.2f}"


def short(ratio: float) -> str:
    """Return a positive number with one digit or two, in as few characters as there can be."""
    if 0.01 <= ratio < 1000:
        return f"{float(f'{ratio:.2g}'):g}"
    mantissa, exponent = f"{ratio:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"
