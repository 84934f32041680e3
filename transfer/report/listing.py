"""The page's lists of checkpoints and records: the first rows as HTML, all of them as compact data."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from carryover.transfer.report.collection import Collection, Numbered

# Rows of a long table that are laid out when the page opens; the same in first.js and page.js.
FIRST = 30
_WHOLE = 200


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


@dataclass(frozen=True)
class Listing:
    """Checkpoints, environments and records, each in the order of their numbers, which count from 1."""

    checkpoints: tuple[CheckpointEntry, ...]
    environments: tuple[EnvironmentEntry, ...]
    records: tuple[RecordEntry, ...]


def build_listing(collection: Collection, out: Path) -> Listing:
    """List records with what they share factored out: ten thousand of them must stay a small page.

    Links to records are relative to `out`, the directory the page will lie in.
    """
    checkpoints: dict[tuple[str, str, int | None], CheckpointEntry] = {}
    environments: dict[tuple[str, str, str], EnvironmentEntry] = {}
    records = []
    base = str(out.absolute())
    ways: dict[str, str] = {}
    libraries: dict[tuple[tuple[str, str], ...], str] = {}
    for (pretraining, evaluation), runs in collection.runs.items():
        for run in runs:
            record = run.record
            label = collection.labels[pretraining]
            origin = (record.checkpoint_sha256, record.checkpoint, record.pretrain_seed)
            checkpoint = checkpoints.setdefault(origin, CheckpointEntry(len(checkpoints) + 1, label, run))
            versions = tuple(record.library_versions.items())
            if versions not in libraries:
                libraries[versions] = ", ".join(f"{k} {v}" for k, v in sorted(versions))
            where = (record.git_revision, libraries[versions], record.hardware)
            environment = environments.setdefault(where, EnvironmentEntry(len(environments) + 1, *where))
            folder, name = os.path.split(run.path)
            if folder not in ways:
                # Of ten thousand folders most differ in their last part alone.
                above, last = os.path.split(folder)
                if above not in ways:
                    ways[above] = os.path.relpath(above or ".", base)
                ways[folder] = os.path.normpath(f"{ways[above]}/{last}")
            path = f"{ways[folder]}/{name}".removeprefix("./").replace(os.sep, "/")
            caption = collection.captions[evaluation]
            records.append(
                RecordEntry(run, label, caption, checkpoint.number, environment.number, path, quote(path))
            )
    records.sort(key=lambda r: r.run.number)
    return Listing(tuple(checkpoints.values()), tuple(environments.values()), tuple(records))


def carried(entries: Sequence[object]) -> int:
    """Return how many rows of a list the page holds as HTML: all, or the first few of a long one.

    page.js makes the others when they are wanted. A browser reads ten thousand rows as data in a fraction of
    the time that it takes to build them.
    """
    return len(entries) if len(entries) <= _WHOLE else FIRST


def packed(listing: Listing) -> str:
    """Return the lists column by column as JSON that may stand in a script element of the page.

    A column is a list of its values or, where that is shorter, {"of": distinct values, "at": indices into
    them}. Paths of records lack the beginning and the end that all of them share, and that "path" holds.
    """
    made = [(c.number, c.label, c.run.record) for c in listing.checkpoints]
    runs = [r.run.record for r in listing.records]
    ends = _shared_ends([r.path for r in listing.records])
    data = {
        "checkpoints": {
            "label": _column([label for _, label, _ in made]),
            "recipe": _column([r.pretrain_recipe for *_, r in made]),
            "dataset": _column([r.pretrain_dataset for *_, r in made]),
            "seed": _column([r.pretrain_seed for *_, r in made]),
            "sha": _column([r.checkpoint_sha256 for *_, r in made]),
            "file": _column([r.checkpoint for *_, r in made]),
        },
        "environments": {
            "git": _column([e.git_revision for e in listing.environments]),
            "libraries": _column([e.libraries for e in listing.environments]),
        },
        "records": {
            "label": _column([r.label for r in listing.records]),
            "caption": _column([r.caption for r in listing.records]),
            "recipe": _column([r.recipe for r in runs]),
            "hash": _column([r.recipe_hash for r in runs]),
            "pretrained": _column([r.pretrain_seed for r in runs]),
            "seed": _column([r.seed for r in runs]),
            "metrics": _column([tuple(m.label for m in r.metrics) for r in runs]),
            "values": [[m.value for m in r.metrics] for r in runs],
            "checkpoint": _column([r.checkpoint for r in listing.records]),
            "environment": _column([r.environment for r in listing.records]),
            "seconds": _column([f"{r.wall_seconds:.0f}" for r in runs]),
            "job": _column([r.job_id or "" for r in runs]),
            "host": _column([r.host for r in runs]),
            "finished": _column([r.finished for r in runs]),
            "path": [_between(r.path, ends) for r in listing.records],
        },
        "path": ends,
    }
    # As escapes, "<" and ">" end no script element and open no comment, whatever a name holds.
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _column(values: Sequence[Any]) -> Any:
    distinct = {value: i for i, value in enumerate(dict.fromkeys(values))}
    if 2 * len(distinct) >= len(values):
        return list(values)
    return {"of": list(distinct), "at": [distinct[v] for v in values]}


def _shared_ends(texts: Sequence[str]) -> tuple[str, str]:
    """Return the longest beginning that all texts have, and the longest end after it."""
    before = _shared_beginning(texts)
    return before, _shared_beginning([t[len(before) :][::-1] for t in texts])[::-1]


def _shared_beginning(texts: Sequence[str]) -> str:
    first, last = min(texts, default=""), max(texts, default="")
    differing = (i for i, (a, b) in enumerate(zip(first, last)) if a != b)
    return first[: next(differing, len(first))]


def _between(text: str, ends: tuple[str, str]) -> str:
    return text[len(ends[0]) : len(text) - len(ends[1])]
