"""Tables in the papers' shape: pretrainings down, evaluations and their metrics across."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from carryover.configs.counted import signed
from carryover.transfer.report.beside import PublishedRow, PublishedRows, published_rows
from carryover.transfer.report.cells import Cell, build_cell
from carryover.transfer.report.collection import Collection, Evaluation, Numbered, Pretraining
from carryover.transfer.report.naming import PICTURES, metric_name, task_name, task_order
from carryover.transfer.results.record import Metric

_MOST_COLUMNS = 12


@dataclass(frozen=True)
class Column:
    """One metric of one evaluation: its label in records, and its name as papers print it."""

    metric: str
    heading: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class Group:
    """Neighboring columns under one heading: one evaluation, or its boxes or its masks."""

    evaluation: Evaluation
    heading: str
    note: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Row:
    """One pretraining; `cells` are parallel to the table's columns, across its groups."""

    pretraining: Pretraining
    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Evaluations that belong together, side by side.

    `notes` says of each evaluation, by the letter its heading carries, what was done on what with what;
    `published` holds papers' rows on the same data, and `deviations`, by the same letters, in what ours
    deviate from what was published.
    """

    title: str
    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    notes: tuple[tuple[str, str], ...]
    published: PublishedRows = field(default_factory=PublishedRows)
    deviations: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> tuple[tuple[Group, Column], ...]:
        """Every column with its group, from left to right."""
        return tuple((g, c) for g in self.groups for c in g.columns)

    def spreads(self) -> str:
        """Return what the ± of this table is over, and over how many."""
        return f"{self._spreads()}{self._intervals()}"

    def _intervals(self) -> str:
        cells = [c for r in self.rows for c in r.cells if c.interval is not None]
        cut = any(c.n > 1 and not c.agrees and c.cut_off for c in cells)
        of = []
        if any(c.n == 1 for c in cells):
            of.append("of a single run over the test images")
        if any(c.n > 1 and not c.agrees for c in cells):
            ended = ", cut off at the ends of the metric's values" if cut else ""
            of.append(f"of several over their seeds (Student{ended})")
        if any(c.n > 1 and c.agrees for c in cells):
            of.append("of several that gave one number over the test images")
        return f" Brackets: 95 % intervals, {', '.join(of)}." if of else ""

    def _spreads(self) -> str:
        spread = [c for r in self.rows for c in r.cells if c.n > 1]
        if not spread:
            return "Single runs: no spread over seeds."
        parts = []
        for over in ("evaluation seeds", "pretraining seeds"):
            counts = sorted({c.n for c in spread if c.over == over})
            if counts:
                several = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
                parts.append(f"{several} {over}")
        single = (
            " A number without ± is a single run."
            if any(c.n == 1 for r in self.rows for c in r.cells)
            else ""
        )
        return f"Mean ± sample standard deviation over {' or '.join(parts)}.{single}"


def build_tables(collection: Collection) -> list[Table]:
    """Put the headline metrics of all evaluations of a task side by side, at most twelve columns a table.

    Classification has a table a data set (UniGrad Table 11), detection one for all (Table 8). Numbers share
    a column only if task, data, split, recipe (by hash), backend, its version and selection are the same.
    """
    families: dict[tuple[str, str], list[Evaluation]] = {}
    for evaluation in _judging(collection):
        dataset = "" if evaluation.task == "detection" else evaluation.dataset
        families.setdefault((evaluation.task, dataset), []).append(evaluation)
    tables = []
    for (task, dataset), evaluations in sorted(
        families.items(), key=lambda f: (task_order(f[0][0]), f[0][1])
    ):
        parts = _chunks([(e, collection.headlines(e)) for e in evaluations])
        shown = dataset or _only({e.dataset for e in evaluations})
        title = task_name(task) + (f", {shown}" if shown else "")
        for i, part in enumerate(parts, start=1):
            numbered = f"{title} ({i} of {len(parts)})" if len(parts) > 1 else title
            tables.append(_table(collection, numbered, part))
    return tables


def build_full_tables(collection: Collection) -> list[Table]:
    """Give each evaluation that has more metrics than its headlines a table of all of them."""
    tables = []
    for evaluation in _judging(collection):
        metrics = collection.metrics(evaluation)
        if len(metrics) > len(collection.headlines(evaluation)):
            title = f"{task_name(evaluation.task)}: {collection.captions[evaluation]}, every metric"
            tables.append(_table(collection, title, [(evaluation, metrics)]))
    return tables


def _judging(collection: Collection) -> list[Evaluation]:
    return [e for e in collection.evaluations if e.task not in PICTURES]


def _only(names: set[str]) -> str:
    """Return the one name there is; "" where there are several."""
    return next(iter(names)) if len(names) == 1 else ""


def _chunks(wanted: Sequence[tuple[Evaluation, list[Metric]]]) -> list[list[tuple[Evaluation, list[Metric]]]]:
    parts: list[list[tuple[Evaluation, list[Metric]]]] = []
    width = _MOST_COLUMNS
    for evaluation, metrics in wanted:
        if width + len(metrics) > _MOST_COLUMNS:
            parts.append([])
            width = 0
        parts[-1].append((evaluation, metrics))
        width += len(metrics)
    return parts


def _table(collection: Collection, title: str, wanted: Sequence[tuple[Evaluation, list[Metric]]]) -> Table:
    groups: list[Group] = []
    notes = []
    letters: dict[Evaluation, str] = {}
    for i, (evaluation, metrics) in enumerate(wanted):
        letter = letters[evaluation] = chr(ord("a") + i)
        notes.append((letter, _note(collection, evaluation)))
        boxes = [m for m in metrics if m.params.get("of") != "mask"]
        masks = [m for m in metrics if m.params.get("of") == "mask"]
        for part, heading in ((boxes, "box" if masks else ""), (masks, "mask")):
            if part:
                caption = " ".join(filter(None, (collection.captions[evaluation], heading)))
                columns = tuple(Column(m.label, metric_name(m), m.unit, m.higher_is_better) for m in part)
                groups.append(Group(evaluation, caption, letter, columns))
    rows = []
    for pretraining in collection.pretrainings:
        cells: list[Cell] = []
        for group in groups:
            runs = collection.runs.get((pretraining, group.evaluation), ())
            missing = missing_seeds(collection, pretraining, group.evaluation) if runs else ()
            cells += [build_cell(runs, column.metric, missing) for column in group.columns]
        if any(cell.sources for cell in cells):
            rows.append(Row(pretraining, collection.labels[pretraining], tuple(cells)))
    higher = [c.higher_is_better for g in groups for c in g.columns]
    shown = [(g.evaluation, c.metric) for g in groups for c in g.columns]
    backbones = sorted({r.pretraining.backbone for r in rows})
    published = published_rows(collection, shown, backbones)
    deviating: dict[str, list[str]] = {}
    for evaluation, text in published.deviations:
        deviating.setdefault(text, []).append(letters[evaluation])
    deviations = tuple((", ".join(of), text) for text, of in deviating.items())
    return Table(title, tuple(groups), tuple(_ranked(rows, higher)), tuple(notes), published, deviations)


def reproductions(table: Table) -> list[str]:
    """Return the distance of each row of ours from the published row of its method, backbone and epochs."""
    told = []
    for row in table.rows:
        for theirs in table.published.rows:
            same = (theirs.method, theirs.backbone) == (row.pretraining.method, row.pretraining.backbone)
            if not same or theirs.epochs not in (None, row.pretraining.epochs):
                continue
            parts = [
                f"{group.heading} {column.heading} {signed(cell.mean - value)}"
                f" ({cell.text()}, published {value:.1f})"
                for (group, column), cell, value in zip(table.columns, row.cells, theirs.values)
                if cell.mean is not None and value is not None
            ]
            if parts:
                where = f"{theirs.label} of {theirs.where}{_reserve(theirs)}"
                told.append(f"{row.label} beside {where}: {', '.join(parts)}")
    return told


def _reserve(theirs: PublishedRow) -> str:
    """Return why a published number may not be that of the same work."""
    said = []
    if theirs.epochs is None:
        said.append("the paper does not say after how many epochs")
    if theirs.own_protocol is not None:
        said.append(f"its protocol: {theirs.own_protocol}")
    return "".join(f"; {text}" for text in said)


def missing_seeds(
    collection: Collection, pretraining: Pretraining, evaluation: Evaluation
) -> tuple[int, ...]:
    """Return the evaluation seeds of the column that some checkpoint of this row lacks."""
    expected = collection.seeds[evaluation]
    of_checkpoint: dict[int | None, set[int]] = {}
    for run in collection.runs[pretraining, evaluation]:
        of_checkpoint.setdefault(run.record.pretrain_seed, set()).add(run.record.seed)
    return tuple(sorted({s for seeds in of_checkpoint.values() for s in expected - seeds}))


def _note(collection: Collection, evaluation: Evaluation) -> str:
    runs = collection.by_evaluation[evaluation]
    recipes = sorted({r.record.recipe for r in runs})
    tested = sorted({m.n for r in runs for m in r.record.metrics})
    measured = {(r.record.facts.get("classes_measured"), r.record.facts.get("classes")) for r in runs}
    means = sorted(
        {f"{m} of {n}" if m != n else f"{n}" for m, n in measured if m is not None and n is not None}
    )
    over = f"; means over {', '.join(means)} classes" if means else ""
    chosen = f"best on {evaluation.selected_on}" if evaluation.selection == "best" else "last checkpoint"
    return (
        f"recipe {', '.join(recipes)} (hash {evaluation.recipe_hash[:12]}); {_trained_on(runs)}"
        f"tested on {_span(tested)} images of {evaluation.dataset}, {evaluation.split};"
        f" {evaluation.backend} {evaluation.backend_version}; {chosen}{over}."
    )


def _trained_on(runs: Sequence[Numbered]) -> str:
    counts = sorted({r.record.train_images for r in runs if r.record.train_images is not None})
    return f"trained on {_span(counts)} images, " if counts else ""


def _span(counts: Sequence[int]) -> str:
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _ranked(rows: Sequence[Row], higher: Sequence[bool]) -> list[Row]:
    """Mark the best and, of three or more, the second of every column."""
    ranks: list[dict[float, int]] = []
    for column, up in enumerate(higher):
        means = sorted({m for r in rows if (m := r.cells[column].mean) is not None}, reverse=up)
        ranked = {m: i for i, m in enumerate(means[: 2 if len(means) > 2 else 1], start=1)}
        ranks.append(ranked if len(means) > 1 else {})
    return [
        replace(
            row,
            cells=tuple(
                replace(c, rank=ranks[i].get(c.mean, 0)) if c.mean is not None else c
                for i, c in enumerate(row.cells)
            ),
        )
        for row in rows
    ]
