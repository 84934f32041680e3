"""The report as one self-contained HTML page."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from transfer.report.findings import Finding
from transfer.report.tables import Table
from transfer.results import Problem, StoredRecord

_MOST_SAMPLES = 4
_IMAGE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Entry:
    """One record in the page's list of sources."""

    number: int
    record: StoredRecord
    href: str


@dataclass(frozen=True)
class Sample:
    """One picture from an evaluation, inlined."""

    title: str
    data_uri: str


def page(
    title: str,
    tables: Sequence[Table],
    told: Sequence[Finding],
    records: Sequence[StoredRecord],
    problems: Sequence[Problem],
    out: Path,
) -> str:
    """Return the page; every cell links to its records, listed below with checkpoint, recipe and versions."""
    entries = {
        str(r.path): Entry(i, r, Path(os.path.relpath(r.path, out)).as_posix())
        for i, r in enumerate(records, start=1)
    }
    environment = Environment(
        loader=PackageLoader("transfer.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        tables=tables,
        told=told,
        entries=entries,
        problems=problems,
        samples=_samples(records),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _samples(records: Sequence[StoredRecord]) -> list[Sample]:
    """Inline the first picture of each record that left any, up to a few of each evaluation recipe."""
    shown: dict[str, list[Sample]] = {}
    for stored in records:
        for name, relative in sorted(stored.record.artifacts.items()):
            path = stored.path.parent / relative
            kind = _IMAGE_TYPES.get(path.suffix.lower())
            if not name.startswith("sample") or kind is None or not path.is_file():
                continue
            of_recipe = shown.setdefault(stored.record.recipe, [])
            if len(of_recipe) < _MOST_SAMPLES:
                encoded = base64.b64encode(path.read_bytes()).decode()
                label = f"{stored.record.pretrain_recipe} in {stored.record.recipe}"
                of_recipe.append(Sample(label, f"data:{kind};base64,{encoded}"))
            break
    return [sample for of_recipe in shown.values() for sample in of_recipe]
