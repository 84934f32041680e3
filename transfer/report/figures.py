"""The report's figures: where each pretraining stands, and training curves."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from carryover.transfer.report.cells import Cell
from carryover.transfer.report.collection import Collection, Pretraining
from carryover.transfer.report.curves import Curve, Logs, evaluation_curves, pretraining_curves
from carryover.transfer.report.drawing import (
    BAND,
    GRAY,
    LINE,
    SOFT,
    Look,
    Picture,
    finish,
    fitted,
    head,
    legend,
    looks,
    new_figure,
)
from carryover.transfer.report.naming import RANDOM
from carryover.transfer.report.tables import Row, Table

_MOST_ROWS = 16
_MOST_LINES = 8
_MOST_FIGURES = 8
_IN_PRETRAINING: Final = (
    ("embedding_spread", "Spread of the embeddings in pretraining (0: collapsed)", "embedding spread"),
    ("positive_similarity", "Similarity of two views in pretraining", "positive similarity"),
    ("negative_similarity", "Similarity of different images in pretraining", "negative similarity"),
    ("knn_accuracy", "k-NN accuracy in pretraining", "top 1 (%)"),
    ("online_knn", "Online k-NN accuracy in pretraining, held-out images", "top 1 (%)"),
    ("online_linear", "Online linear accuracy in pretraining, held-out images", "top 1 (%)"),
    ("rankme", "RankMe in pretraining: effective rank of the embeddings", "RankMe"),
    ("lidar", "LiDAR in pretraining: effective rank between images", "LiDAR"),
    ("mi_bound", "Bound on the mutual information in pretraining", "bound (nats)"),
)
_IN_EVALUATION: Final = (("top1", "top 1"), ("AP", "AP"), ("mask_AP", "mask AP"), ("mIoU", "mIoU"))
_WIDTH = 4.4


def standings(tables: Sequence[Table], collection: Collection, directory: Path | None) -> list[Picture]:
    """Draw every mean and its spread by the first metric of each column group."""
    style = looks(collection.pretrainings)
    pictures: list[Picture] = []
    for t, table in enumerate(tables, start=1):
        start = 0
        for g, group in enumerate(table.groups, start=1):
            column = group.columns[0]
            rows = [r for r in table.rows if r.cells[start].mean is not None]
            if len(rows) >= 2 and len(pictures) < _MOST_FIGURES:
                title = f"{group.heading}: {column.heading} ({column.unit})"
                if len(rows) > _MOST_ROWS:
                    up = column.higher_is_better
                    best = sorted(rows, key=lambda r: _mean(r.cells[start]), reverse=up)[:_MOST_ROWS]
                    title += f", best {_MOST_ROWS} of {len(rows)}"
                    rows = [r for r in rows if r in best]
                pictures.append(_standing(f"standing-{t}-{g}", title, rows, start, style, directory))
            start += len(group.columns)
    return pictures


def figure_note(tables: Sequence[Table]) -> str:
    """Return what the figures of these tables are made of: only of what is drawn in one of them."""
    cells = [
        (row, cell) for table in tables for row in table.rows for cell in row.cells if cell.mean is not None
    ]
    parts = ["Points are means" if any(cell.n > 1 for _, cell in cells) else "Points are single runs"]
    if any(cell.std is not None for _, cell in cells):
        parts.append("bars sample standard deviations")
    if any(cell.n > 1 for _, cell in cells):
        parts.append("ticks single runs")
    said = ", ".join(parts)
    drawn = [cell for row, cell in cells if row.pretraining.method == RANDOM]
    if drawn:
        band = " and its band are" if any(cell.std is not None for cell in drawn) else " is"
        said += f"; the dashed line{band} random initialization"
    return said + "."


def _standing(
    name: str,
    title: str,
    rows: Sequence[Row],
    at: int,
    style: dict[Pretraining, Look],
    directory: Path | None,
) -> Picture:
    figure, axes = new_figure(_WIDTH, 0.75 + 0.27 * len(rows))
    for y, row in enumerate(rows):
        cell, look = row.cells[at], style[row.pretraining]
        if row.pretraining.method == RANDOM:
            axes.axvline(_mean(cell), color=GRAY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            if cell.std is not None:
                axes.axvspan(
                    _mean(cell) - cell.std, _mean(cell) + cell.std, color=BAND, linewidth=0, zorder=0
                )
        axes.errorbar(
            _mean(cell),
            y,
            xerr=cell.std,
            fmt=look.marker,
            color=look.color,
            markersize=6,
            capsize=0,
            zorder=3,
        )
        if cell.n > 1:
            axes.plot(cell.values, [y] * cell.n, "|", color=look.color, markersize=8, alpha=0.7, zorder=2)
    axes.set_yticks(range(len(rows)), [fitted(r.label, 22) for r in rows])
    axes.invert_yaxis()
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    head(figure, title)
    spoken = "; ".join(f"{r.label} {r.cells[at].text()}" for r in rows)
    return finish(figure, name, title, f"{title}: {spoken}", directory)


def training_curves(collection: Collection, runs: Sequence[Path], directory: Path | None) -> list[Picture]:
    """Draw the loss of every pretraining (losses of different methods share no axis) and of the detectors."""
    style = looks(collection.pretrainings)
    pictures: list[Picture] = []
    names = ("loss", *(number for number, _, _ in _IN_PRETRAINING))
    pretrainings = pretraining_curves(collection, runs, names)
    for i, curve in enumerate(pretrainings.get("loss", ())[:_MOST_FIGURES], start=1):
        title = f"Pretraining loss: {curve.label}"
        pictures.append(_curves(f"pretraining-loss-{i}", title, "loss", [curve], style, directory))
    for number, words, label in _IN_PRETRAINING:
        curves = pretrainings.get(number, ())[:_MOST_LINES]
        if curves:
            name = f"pretraining-{number.replace('_', '-')}"
            pictures.append(_curves(name, words, label, curves, style, directory))
    watched = [f"validation_{metric}" for metric, _ in _IN_EVALUATION]
    evaluations, drawn = evaluation_curves(collection, ("loss", *watched)), 0
    for caption, logs in evaluations.items():
        curves = logs.get("loss", ())
        if curves and drawn < _MOST_FIGURES:
            drawn += 1
            title = f"{caption}: training loss, first seed"
            name = f"evaluation-loss-{drawn}"
            pictures.append(_curves(name, title, "loss", curves[:_MOST_LINES], style, directory))
    return pictures + _validation_curves(evaluations, style, directory)


def _validation_curves(
    evaluations: dict[str, Logs], style: dict[Pretraining, Look], directory: Path | None
) -> list[Picture]:
    """Draw the metrics that evaluations measured on held-out images while they trained."""
    pictures: list[Picture] = []
    for caption, logs in evaluations.items():
        for metric, said in _IN_EVALUATION:
            curves = logs.get(f"validation_{metric}", ())[:_MOST_LINES]
            if curves and len(pictures) < _MOST_FIGURES:
                title = f"{caption}: {said} in training, held-out images, first seed"
                name = f"evaluation-{metric}-{len(pictures) + 1}"
                pictures.append(_curves(name, title, f"{said} (%)", curves, style, directory))
    return pictures


def _curves(
    name: str,
    title: str,
    ylabel: str,
    curves: Sequence[Curve],
    style: dict[Pretraining, Look],
    directory: Path | None,
) -> Picture:
    from matplotlib.ticker import MaxNLocator

    if len(curves) == 1 and curves[0].label not in title:
        title = f"{title}: {curves[0].label}"
    figure, axes = new_figure(_WIDTH, 2.2 if len(curves) == 1 else 2.9)
    for curve in curves:
        look = style[curve.pretraining]
        axes.plot(curve.steps, curve.values, color=look.color, linestyle=look.dashes, label=curve.label)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True))
    axes.set_ylabel(ylabel)
    axes.spines["left"].set_color(LINE)
    axes.yaxis.label.set_color(SOFT)
    if len(curves) > 1:
        legend(figure)
    head(figure, title)
    ends = "; ".join(f"{c.label} from {c.values[0]:.3g} to {c.values[-1]:.3g}" for c in curves)
    return finish(figure, _safe(name), title, f"{title}. {ends}", directory)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", name)


def _mean(cell: Cell) -> float:
    if cell.mean is None:
        raise ValueError("a cell without a mean cannot be drawn")
    return cell.mean
