"""Collect the records of one or several runs and write the report in the formats asked for."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carryover.configs import UserError
from carryover.configs.files import write_atomic
from carryover.configs.garbage import without_garbage_collection
from carryover.configs.leftovers import remove_abandoned
from carryover.transfer.report.content import build_content, build_pictures
from carryover.transfer.report.latex import latex
from carryover.transfer.report.markdown import markdown
from carryover.transfer.report.page import page
from carryover.transfer.report.progress import RunProgress, run_progress
from carryover.transfer.results.reading import Problem, read_records, require_runs, to_frame

FORMATS = ("html", "md", "tex", "csv", "parquet", "figures")
FIGURES = "figures"


@dataclass(frozen=True)
class Report:
    """Written report: its files, number of records, unreadable records, unfinished stages."""

    files: tuple[Path, ...]
    records: int
    problems: tuple[Problem, ...]
    partial: tuple[RunProgress, ...] = ()


@without_garbage_collection()
def write_report(
    runs: Sequence[Path],
    out: Path,
    title: str = "What the pretraining carries over",
    formats: Sequence[str] = ("html", "md", "csv"),
    refresh_seconds: int | None = None,
    reference: str | None = None,
) -> Report:
    """Write a report of every result record below `runs` into the directory `out`.

    "html" writes index.html (one file that needs no other), "figures" its figures as SVG and PDF files,
    "md" report.md, "tex" tables.tex, "csv" and "parquet" results.csv and results.parquet. Unreadable records
    are left out, and listed in the report and in the returned `problems`. A report of unfinished runs says
    so; with `refresh_seconds` its page loads itself again, as long as something of them is under way. With
    `reference`, every other row is compared with the row of that name on the same test images.

    Raises
    ------
    UserError
        An unknown format, "parquet" without pyarrow, a run that does not exist, or runs with neither a record
        nor an unfinished stage.
    """
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise UserError(f"report format '{unknown[0]}' is unknown; there are: {', '.join(FORMATS)}")
    if "parquet" in formats and importlib.util.find_spec("pyarrow") is None:
        raise UserError("report format 'parquet' needs pyarrow: pip install 'carryover-eval[parquet]'")
    require_runs(runs)
    # Asked first: a result that comes in between is then in a report that calls itself partial, not missing
    # from one that calls itself whole.
    partial = run_progress(runs)
    records, problems = read_records(runs)
    if not records and not problems and not partial:
        raise UserError(f"{', '.join(map(str, runs))}: no result records there; nothing to report")
    out.mkdir(parents=True, exist_ok=True)
    remove_abandoned(out)
    content = build_content(title, records, problems, partial, refresh_seconds, reference)
    files = []
    if "html" in formats or "figures" in formats:
        directory = out / FIGURES if "figures" in formats else None
        pictures = build_pictures(content, [r for r in runs if r.is_dir()], directory)
        files += [directory / f"{p.name}.pdf" for p in pictures.drawn] if directory else []
    if "html" in formats:
        files.append(_write(out / "index.html", page(content, pictures, out).encode()))
    if "md" in formats:
        files.append(_write(out / "report.md", markdown(content).encode()))
    if "tex" in formats:
        files.append(_write(out / "tables.tex", latex(content).encode()))
    if "csv" in formats:
        files.append(_write(out / "results.csv", to_frame(records).to_csv(index=False).encode()))
    if "parquet" in formats:
        files.append(_write(out / "results.parquet", to_frame(records).to_parquet(index=False)))
    return Report(tuple(files), len(records), tuple(problems), tuple(partial))


def _write(path: Path, content: bytes) -> Path:
    write_atomic(path, content)
    return path
