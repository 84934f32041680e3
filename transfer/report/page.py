"""The report as one self-contained HTML page: no network, no second file."""

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from transfer.report.collection import Collection, Numbered
from transfer.report.content import Content, Pictures
from transfer.report.tables import reproductions

_SUBSCRIPT = re.compile(r"^(AP)(50|75|s|m|l)$")


@dataclass(frozen=True)
class CheckpointEntry:
    """One checkpoint in the page's list."""

    number: int
    label: str
    run: Numbered


@dataclass(frozen=True)
class EnvironmentEntry:
    """One combination of code, libraries and hardware in the page's list."""

    number: int
    git_revision: str
    libraries: str
    hardware: str


@dataclass(frozen=True)
class RecordEntry:
    """One record in the page's list, with the numbers of what it shares with others."""

    run: Numbered
    label: str
    caption: str
    checkpoint: int
    environment: int
    path: str
    href: str


def page(content: Content, pictures: Pictures, out: Path) -> str:
    """Return the page; every cell leads to its records, listed below with checkpoint, recipe and versions.

    `out` is the directory the page will lie in: links to records are relative to it. The page's own policy
    forbids it to load anything and to run any script but the one it carries.
    """
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=PackageLoader("transfer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["subscript"] = _subscript
    checkpoints, environments, records = _entries(content.collection, out)
    return environment.get_template("page.html.j2").render(
        content=content,
        pictures=pictures,
        style=Markup(_asset("page.css")),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        checkpoints=checkpoints,
        environments=environments,
        records=records,
        svg=Markup,
        reproductions=reproductions,
    )


def _asset(name: str) -> str:
    return (resources.files("transfer.report") / "templates" / name).read_text(encoding="utf-8")


def _subscript(metric: str) -> Markup:
    """Print AP50 with its threshold set low, as papers do."""
    if match := _SUBSCRIPT.match(metric):
        return Markup("{}<sub>{}</sub>").format(*match.groups())
    return escape(metric)


def _entries(
    collection: Collection, out: Path
) -> tuple[Sequence[CheckpointEntry], Sequence[EnvironmentEntry], Sequence[RecordEntry]]:
    """List records with what they share factored out: ten thousand of them must stay a small page."""
    checkpoints: dict[tuple[str, str, int | None], CheckpointEntry] = {}
    environments: dict[tuple[str, str, str], EnvironmentEntry] = {}
    records = []
    base = str(out.absolute())
    for (pretraining, evaluation), runs in collection.runs.items():
        for run in runs:
            record = run.record
            label = collection.labels[pretraining]
            origin = (record.checkpoint_sha256, record.checkpoint, record.pretrain_seed)
            checkpoint = checkpoints.setdefault(origin, CheckpointEntry(len(checkpoints) + 1, label, run))
            libraries = ", ".join(f"{k} {v}" for k, v in sorted(record.library_versions.items()))
            where = (record.git_revision, libraries, record.hardware)
            environment = environments.setdefault(where, EnvironmentEntry(len(environments) + 1, *where))
            path = os.path.relpath(run.path.absolute(), base).replace(os.sep, "/")
            caption = collection.captions[evaluation]
            records.append(
                RecordEntry(run, label, caption, checkpoint.number, environment.number, path, quote(path))
            )
    return (
        list(checkpoints.values()),
        list(environments.values()),
        sorted(records, key=lambda r: r.run.number),
    )
