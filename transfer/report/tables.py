"""Tables of our own results: methods x metrics, mean and spread over seeds, every cell with its records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd

RANDOM = "random"

# What makes two numbers comparable: a table holds one value of each.
_TABLE_KEYS = ["task", "dataset", "split", "recipe", "recipe_hash", "backend", "backend_version", "selection"]
_ROW_KEYS = ["pretrain_recipe", "method", "backbone", "pretrain_epochs", "pretrain_dataset"]
_TASKS = ["finetune", "linear", "knn", "svm", "detection", "segmentation"]


@dataclass(frozen=True)
class Source:
    """One seed's number and where it comes from."""

    record: str
    checkpoint: str
    checkpoint_sha256: str
    seed: int
    pretrain_seed: int | None
    value: float | None
    job_id: str | None


@dataclass(frozen=True)
class Cell:
    """A mean over seeds; `std` is the sample standard deviation (n - 1), None for a single run."""

    mean: float | None
    std: float | None
    sources: tuple[Source, ...]
    best: bool = False

    @property
    def n(self) -> int:
        """Number of runs behind the mean."""
        return len(self.sources)

    def text(self) -> str:
        """The cell as a reader sees it: ``61.3 ± 0.4 (3)``."""
        if self.mean is None:
            return "–"
        spread = "" if self.std is None else f" ± {self.std:.1f}"
        return f"{self.mean:.1f}{spread}" + (f" ({self.n})" if self.n > 1 else "")


@dataclass(frozen=True)
class Row:
    """One pretraining in one table."""

    label: str
    method: str
    backbone: str
    epochs: float | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """One evaluation recipe on one split: pretrainings down, metrics across."""

    task: str
    title: str
    recipe: str
    recipe_hash: str
    dataset: str
    split: str
    backend: str
    selection: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    train_images: str

    @property
    def anchor(self) -> str:
        """A name for links to this table."""
        return f"{self.task}-{self.recipe}-{self.recipe_hash[:8]}"


def build_tables(frame: pd.DataFrame) -> list[Table]:
    """Group a tidy frame of results (`transfer.results.to_frame`) into tables.

    Numbers share a table only if task, data, split, recipe (by hash), backend and selection are the same;
    they share a cell only if the pretraining differs in nothing but its seed.
    """
    if frame.empty:
        return []
    tables = [
        _table(dict(zip(_TABLE_KEYS, keys)), group)
        for keys, group in frame.groupby(_TABLE_KEYS, dropna=False, sort=True)
    ]
    return sorted(tables, key=lambda t: (_order(t.task), t.dataset, t.recipe, t.recipe_hash))


def _table(key: dict[str, Any], group: pd.DataFrame) -> Table:
    metrics = list(dict.fromkeys(group["metric"]))
    directions = dict(zip(group["metric"], group["higher_is_better"]))
    units = dict(zip(group["metric"], group["unit"]))
    rows = []
    for row_keys, runs in group.groupby(_ROW_KEYS, dropna=False, sort=False):
        named: dict[str, Any] = dict(zip(_ROW_KEYS, row_keys))
        cells = tuple(_cell(runs[runs["metric"] == m]) for m in metrics)
        epochs = None if pd.isna(named["pretrain_epochs"]) else float(named["pretrain_epochs"])
        rows.append(Row(named["pretrain_recipe"], named["method"], named["backbone"], epochs, cells))
    rows = _mark_best(rows, [directions[m] for m in metrics])
    images = sorted({int(v) for v in group["train_images"].dropna()})
    return Table(
        task=key["task"],
        title=f"{key['recipe']}: {key['dataset']}, {key['split']}",
        recipe=key["recipe"],
        recipe_hash=key["recipe_hash"],
        dataset=key["dataset"],
        split=key["split"],
        backend=f"{key['backend']} {key['backend_version']}",
        selection=key["selection"],
        columns=tuple(f"{m} ({units[m]})" for m in metrics),
        rows=tuple(sorted(rows, key=lambda r: (r.method == RANDOM, r.method == "supervised", r.label))),
        train_images=", ".join(f"{i:,}" for i in images),
    )


def _cell(runs: pd.DataFrame) -> Cell:
    rows: list[dict[str, Any]] = runs.astype(object).where(runs.notna(), None).to_dict("records")  # type: ignore
    sources = tuple(Source(**{f.name: row[f.name] for f in fields(Source)}) for row in rows)
    values = [s.value for s in sources if s.value is not None]
    if not values:
        return Cell(None, None, sources)
    mean = math.fsum(values) / len(values)
    std = None
    if len(values) > 1:
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return Cell(mean, std, sources)


def _mark_best(rows: Sequence[Row], higher: Sequence[bool]) -> list[Row]:
    best: list[float | None] = []
    for column, up in enumerate(higher):
        means = [r.cells[column].mean for r in rows]
        present = [m for m in means if m is not None]
        best.append((max if up else min)(present) if present else None)
    return [
        Row(
            r.label,
            r.method,
            r.backbone,
            r.epochs,
            tuple(
                Cell(c.mean, c.std, c.sources, best=c.mean is not None and c.mean == b)
                for c, b in zip(r.cells, best)
            ),
        )
        for r in rows
    ]


def _order(task: str) -> int:
    return _TASKS.index(task) if task in _TASKS else len(_TASKS)
