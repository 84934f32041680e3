"""Collect the records of one or several runs and write the report in the formats asked for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs import UserError
from transfer.report.findings import findings
from transfer.report.markdown import markdown
from transfer.report.page import page
from transfer.report.tables import build_tables
from transfer.results import Problem, read_records, to_frame

FORMATS = ("html", "md", "csv")


@dataclass(frozen=True)
class Report:
    """What was written: the files, how many records they rest on, and what could not be read."""

    files: tuple[Path, ...]
    records: int
    problems: tuple[Problem, ...]


def write_report(
    runs: Sequence[Path],
    out: Path,
    title: str = "What the pretraining carries over",
    formats: Sequence[str] = FORMATS,
) -> Report:
    """Write `out`/index.html, report.md and results.csv from every result record below `runs`.

    Unreadable records are listed in the report and in the returned `problems`.

    Raises
    ------
    UserError
        An unknown format, a run that is not there, or no record at all in any of them.
    """
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise UserError(f"report format '{unknown[0]}' is unknown; there are: {', '.join(FORMATS)}")
    for run in runs:
        if not run.exists():
            raise UserError(f"{run}: no such run")
    records, problems = read_records(runs)
    if not records and not problems:
        raise UserError(f"{', '.join(map(str, runs))}: no result records there; nothing to report")
    out.mkdir(parents=True, exist_ok=True)
    frame = to_frame(records)
    tables = build_tables(frame)
    told = findings(tables)
    files = []
    if "html" in formats:
        files.append(_write(out / "index.html", page(title, tables, told, records, problems, out)))
    if "md" in formats:
        files.append(_write(out / "report.md", markdown(title, tables, told, problems)))
    if "csv" in formats:
        files.append(_write(out / "results.csv", frame.to_csv(index=False)))
    return Report(tuple(files), len(records), tuple(problems))


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path
