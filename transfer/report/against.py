"""Figures of accuracy against what it takes: labels, training images, the cost of pretraining."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from carryover.transfer.report.cells import Cell, build_cell, joint_interval
from carryover.transfer.report.collection import Collection, Evaluation, Pretraining, what
from carryover.transfer.report.costs import pretrain_gpu_hours, pretrain_wall_hours, pretraining_cost
from carryover.transfer.report.drawing import BAND, GRAY, Picture, finish, head, legend, looks, new_figure
from carryover.transfer.report.naming import RANDOM, metric_name, share, task_name
from carryover.transfer.report.tables import Table

# The points (share of the labels or number of images, cell) of each pretraining.
Lines = dict[Pretraining, list[tuple[float, Cell]]]

_MOST_LINES = 8
_MOST_FIGURES = 8
_WIDTH = 4.4
_LOG_FROM = 20


def label_families(collection: Collection) -> list[dict[float, Evaluation]]:
    """Return the evaluations by share of the labels, wherever one model was trained with several of them."""
    families: dict[tuple[str | None, ...], dict[float, Evaluation]] = {}
    for evaluation, runs in collection.by_evaluation.items():
        first, metrics = runs[0].record, collection.headlines(evaluation)
        if first.label_fraction is not None and metrics:
            data = (evaluation.dataset, evaluation.data_digest)
            key = (evaluation.task, *data, metrics[0].label, first.model)
            families.setdefault(key, {}).setdefault(first.label_fraction, evaluation)
    return [family for family in families.values() if len(family) > 1]


def against_labels(collection: Collection, directory: Path | None) -> list[Picture]:
    """Draw accuracy (AP, mIoU) against the share of labels, wherever a model was trained with several."""
    pictures: list[Picture] = []
    for i, family in enumerate(label_families(collection)[:_MOST_FIGURES], start=1):
        evaluation = next(iter(family.values()))
        metric, record = collection.headlines(evaluation)[0], collection.by_evaluation[evaluation][0].record
        name = metric_name(metric)
        title = f"{record.model or task_name(evaluation.task)}, {evaluation.dataset}: {name} against labels"
        lines = _lines(collection, family, metric.label)
        words = f"{name} (%)", "share of the labels"
        pictures += _line_chart(f"labels-{i}", title, words, share, lines, collection, directory)
    return pictures


def against_images(collection: Collection, directory: Path | None) -> list[Picture]:
    """Draw AP (mIoU) against training images, wherever one model was trained on several amounts of them.

    Test images, backend and its version are the same along a line; recipe and schedule need not be.
    """
    families: dict[tuple[str, str, str, int, str, str], dict[float, Evaluation]] = {}
    names: dict[str, str] = {}
    for evaluation, runs in collection.by_evaluation.items():
        amounts = {r.record.train_images for r in runs}
        metrics = collection.headlines(evaluation)
        if evaluation.task not in ("detection", "segmentation") or len(amounts) > 1 or not metrics:
            continue
        if (runs[0].record.label_fraction or 1) < 1:
            # Parts of one training split are drawn against the share of its labels.
            continue
        (images,) = amounts
        if images:
            tested = (evaluation.split, metrics[0].n, evaluation.backend, evaluation.backend_version)
            model = (what(runs[0].record), metrics[0].label)
            names[metrics[0].label] = metric_name(metrics[0])
            families.setdefault((*model, *tested), {}).setdefault(images, evaluation)
    pictures: list[Picture] = []
    for i, ((name, metric, *_), family) in enumerate(families.items(), start=1):
        if len(family) > 1 and len(pictures) < _MOST_FIGURES:
            data = ", ".join(dict.fromkeys(family[n].dataset for n in sorted(family)))
            title = f"{name}, {data}: {names[metric]} against images"
            lines = _lines(collection, family, metric)
            words = f"{names[metric]} (%)", "training images"
            pictures += _line_chart(f"images-{i}", title, words, _count, lines, collection, directory)
    return pictures


def against_cost(tables: Sequence[Table], collection: Collection, directory: Path | None) -> list[Picture]:
    """Draw each column group's first metric against the pretraining's GPU-hours; wall hours without a GPU."""
    measures = (("GPU", pretrain_gpu_hours), ("wall", pretrain_wall_hours))
    costs = {
        kind: {
            p: spent
            for p in collection.pretrainings
            if p.method != RANDOM and (spent := pretraining_cost(collection, p, number))
        }
        for kind, number in measures
    }
    kind = "GPU" if costs["GPU"] else "wall"
    pictures: list[Picture] = []
    for t, table in enumerate(tables, start=1):
        start = 0
        for g, group in enumerate(table.groups, start=1):
            cells = {r.pretraining: r.cells[start] for r in table.rows if r.cells[start].mean is not None}
            column = group.columns[0]
            start += len(group.columns)
            known = {p: costs[kind][p] for p in cells if p in costs[kind]}
            if len(known) > 1 and len(pictures) < _MOST_FIGURES:
                name, title = f"cost-{t}-{g}", f"{group.heading}: {column.heading} against cost"
                ylabel = f"{column.heading} ({column.unit})"
                pictures.append(_cost_chart(name, title, ylabel, kind, known, cells, collection, directory))
    return pictures


def _lines(collection: Collection, family: dict[float, Evaluation], metric: str) -> Lines:
    lines: Lines = {}
    for pretraining in collection.pretrainings:
        for x, evaluation in sorted(family.items()):
            runs = collection.runs.get((pretraining, evaluation))
            if runs and (cell := build_cell(runs, metric)).mean is not None:
                lines.setdefault(pretraining, []).append((x, cell))
    return {p: points for p, points in lines.items() if len(points) > 1}


def _line_chart(
    name: str,
    title: str,
    words: tuple[str, str],
    tick: Callable[[float], str],
    lines: Lines,
    collection: Collection,
    directory: Path | None,
) -> list[Picture]:
    """Draw one line a pretraining over a logarithmic axis; nothing where none has two points."""
    if not lines:
        return []
    style = looks(collection.pretrainings)
    drawn = _strongest(lines, {p: points[0][1] for p, points in lines.items()})
    figure, axes = new_figure(_WIDTH, 3.1)
    spoken = []
    for pretraining in drawn:
        look, points = style[pretraining], lines[pretraining]
        axes.errorbar(
            [x for x, _ in points],
            [_mean(c) for _, c in points],
            yerr=_bars([c for _, c in points]),
            color=look.color,
            marker=look.marker,
            markersize=5,
            linestyle=look.dashes,
            label=collection.labels[pretraining],
        )
        told = ", ".join(f"{tick(x)} {c.text()}" for x, c in points)
        spoken.append(f"{collection.labels[pretraining]}: {told}")
    axes.set_xscale("log")
    places = sorted({x for p in drawn for x, _ in lines[p]})
    axes.set_xticks(places, [tick(x) for x in places])
    axes.minorticks_off()
    axes.set_ylabel(words[0])
    axes.set_xlabel(f"{words[1]}; bars: 95 % over images and seeds")
    return [_finished(figure, name, title, spoken, (drawn, lines), directory)]


def _bars(cells: Sequence[Cell]) -> list[list[float]]:
    """Return how far 95 % intervals over images and seeds reach below and above the means; 0 for none."""
    bounds = [(_mean(c), joint_interval(c) or (_mean(c), _mean(c))) for c in cells]
    return [[max(0.0, m - low) for m, (low, _) in bounds], [max(0.0, high - m) for m, (_, high) in bounds]]


def _cost_chart(
    name: str,
    title: str,
    ylabel: str,
    kind: str,
    spent: dict[Pretraining, float],
    cells: dict[Pretraining, Cell],
    collection: Collection,
    directory: Path | None,
) -> Picture:
    style = looks(collection.pretrainings)
    drawn = _strongest(spent, cells)
    short = max(spent.values()) < 1
    unit, factor = (f"{kind} minutes", 60) if short else (f"{kind} hours", 1)
    figure, axes = new_figure(_WIDTH, 3.1)
    spoken = []
    for pretraining, cell in cells.items():
        if pretraining.method == RANDOM:
            label = collection.labels[pretraining]
            axes.axhline(_mean(cell), color=GRAY, linewidth=1, linestyle=(0, (4, 3)), zorder=1, label=label)
            if cell.std is not None:
                axes.axhspan(
                    _mean(cell) - cell.std, _mean(cell) + cell.std, color=BAND, linewidth=0, zorder=0
                )
            spoken.append(f"{label}, which costs nothing: {cell.text()}")
    for pretraining in drawn:
        look, cell, cost = style[pretraining], cells[pretraining], spent[pretraining] * factor
        axes.errorbar(
            cost,
            _mean(cell),
            yerr=cell.std,
            fmt=look.marker,
            color=look.color,
            markersize=6,
            label=collection.labels[pretraining],
        )
        spoken.append(f"{collection.labels[pretraining]}: {cell.text()} after {cost:.3g} {unit}")
    if max(spent.values()) > _LOG_FROM * min(spent.values()):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.margins(x=0.08)
    axes.set_ylabel(ylabel)
    axes.set_xlabel(f"pretraining, {unit}")
    return _finished(figure, name, title, spoken, (drawn, spent), directory)


def _finished(
    figure: Any,
    name: str,
    title: str,
    spoken: Sequence[str],
    counted: tuple[Sequence[Pretraining], Iterable[Pretraining]],
    directory: Path | None,
) -> Picture:
    drawn, total = len(counted[0]), len(list(counted[1]))
    title = title if drawn == total else f"{title} ({drawn} of {total} pretrainings)"
    head(figure, title)
    legend(figure)
    return finish(figure, name, title, f"{title}. {'; '.join(spoken)}", directory)


def _strongest(among: Iterable[Pretraining], cells: dict[Pretraining, Cell]) -> list[Pretraining]:
    """Keep the baselines and, of the rest, those that start highest, up to what a figure can hold."""
    wanted = list(among)
    baselines = [p for p in wanted if p.baseline][: _MOST_LINES // 2]
    rest = sorted((p for p in wanted if not p.baseline), key=lambda p: -_mean(cells[p]))
    kept = {*baselines, *rest[: _MOST_LINES - len(baselines)]}
    return [p for p in wanted if p in kept]


def _count(images: float) -> str:
    return f"{images:,.0f}"


def _mean(cell: Cell) -> float:
    if cell.mean is None:
        raise ValueError("a cell without a mean cannot be drawn")
    return cell.mean
