"""Costs of the numbers: hours of every pretraining and of every evaluation, from the records."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from carryover.transfer.report.collection import Collection, Numbered, Pretraining
from carryover.transfer.report.naming import task_name
from carryover.transfer.report.statistics import mean
from carryover.transfer.results.record import ResultRecord

_Number = Callable[[ResultRecord], float | None]
_COUNTED = {"sacct": "SLURM's accounting", "clock": "the pipeline's clock", None: "the evaluation itself"}


@dataclass(frozen=True)
class CostColumn:
    """One kind of cost; what is a time is in hours and is printed as h:mm:ss."""

    heading: str
    time: bool = False

    def text(self, value: float | None) -> str:
        """Print a value of this column; nothing where it is not known."""
        if value is None:
            return ""
        return _clock(value) if self.time else _number(value)


@dataclass(frozen=True)
class CostRow:
    """One pretraining or evaluation; `values` are parallel to the table's columns, None where not known."""

    label: str
    detail: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class CostTable:
    """Costs in the order of the report's rows or columns, without columns of nothing but zeros and gaps."""

    title: str
    what: str
    columns: tuple[CostColumn, ...]
    rows: tuple[CostRow, ...]
    note: str


def build_cost_tables(collection: Collection) -> list[CostTable]:
    """Lay out the costs of the pretrainings, where any is recorded, and of the evaluations.

    A pretraining of several seeds has the mean over its checkpoints. Repetitions of a record count once.
    """
    tables = [_of_pretrainings(collection), _of_evaluations(collection)]
    return [t for t in tables if t.rows]


def pretraining_cost(collection: Collection, pretraining: Pretraining, number: _Number) -> float | None:
    """Return a cost of a pretraining, the mean over its checkpoints; None unless all of them know it.

    The records of one checkpoint agree, or were brought up to date at different times: the largest is taken.
    """
    known: dict[tuple[str, int | None], float | None] = {}
    for run in collection.by_pretraining[pretraining]:
        key = (run.record.checkpoint_sha256, run.record.pretrain_seed)
        found = [v for v in (known.get(key), number(run.record)) if v is not None]
        known[key] = max(found, default=None)
    values = [v for v in known.values() if v is not None]
    return mean(values) if len(values) == len(known) else None


def pretrain_gpu_hours(record: ResultRecord) -> float | None:
    """GPU-hours of the pretraining, None where it had no GPU or none are recorded."""
    return record.pretrain_gpu_hours or None


def pretrain_wall_hours(record: ResultRecord) -> float | None:
    """Wall hours of the pretraining, of all its attempts together."""
    return _hours(record.pretrain_wall_seconds)


def _number(value: float) -> str:
    """Print a count or hours with the digits that mean anything: ``1,234``, ``12.5``, ``0.25``, ``0.004``."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def _clock(hours: float) -> str:
    minutes, seconds = divmod(round(hours * 3600), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


_PRETRAINING: dict[str, _Number] = {
    "GPU-hours": pretrain_gpu_hours,
    "wall time": pretrain_wall_hours,
    "waiting": lambda r: _hours(r.pretrain_waiting_seconds),
    "attempts": lambda r: r.pretrain_attempts,
    "peak GiB a GPU": lambda r: r.pretrain_peak_gpu_memory_gib,
}
_EVALUATION: dict[str, _Number] = {
    "GPU-hours": lambda r: r.gpu_hours or None,
    "wall time": lambda r: r.wall_seconds / 3600,
    "waiting": lambda r: _hours(r.waiting_seconds),
    "attempts": lambda r: r.attempts,
}


def _of_pretrainings(collection: Collection) -> CostTable:
    rows = []
    for pretraining, label in collection.labels.items():
        runs = _once(collection.by_pretraining[pretraining])
        values = [pretraining_cost(collection, pretraining, number) for number in _PRETRAINING.values()]
        known = any(v is not None for v in values)
        epochs = f", {pretraining.epochs:g} epochs" if pretraining.epochs else ""
        checkpoints = len({(r.record.checkpoint_sha256, r.record.pretrain_seed) for r in runs})
        totals = [_total(runs, _EVALUATION[name]) for name in ("GPU-hours", "wall time")]
        row = CostRow(label, f"{pretraining.backbone}{epochs}", (checkpoints, *values, len(runs), *totals))
        rows.append((known, row))
    headings = ("checkpoints", *(f"{name} each" for name in _PRETRAINING))
    headings += ("evaluations", "their GPU-hours", "their wall time")
    shown = [row for _, row in rows] if any(known for known, _ in rows) else []
    note = "Each checkpoint's pretraining with all its attempts, then all evaluations of the row together."
    return _table("What the pretrainings cost", "Pretraining", headings, shown, note)


def _of_evaluations(collection: Collection) -> CostTable:
    rows = []
    every: list[Numbered] = []
    for evaluation, caption in collection.captions.items():
        runs = _once(collection.by_evaluation[evaluation])
        every += runs
        each = [_mean(runs, number) for number in _EVALUATION.values()]
        total = [_total(runs, _EVALUATION[name]) for name in ("GPU-hours", "wall time")]
        detail = f"{task_name(evaluation.task)}, {evaluation.dataset}"
        rows.append(CostRow(caption, detail, (len(runs), *each, *total)))
    headings = ("runs", *(f"{name} each" for name in _EVALUATION), "GPU-hours in all", "wall time in all")
    counted = Counter(_COUNTED[r.record.cost_source] for r in every)
    said = ", ".join(f"{who} ({n:,})" for who, n in counted.most_common())
    machines = ", ".join(sorted({r.record.hardware for r in every}))
    return _table(
        "What the evaluations cost", "Evaluation", headings, rows, f"Counted by {said}. On {machines}."
    )


def _table(title: str, what: str, headings: Sequence[str], rows: Sequence[CostRow], note: str) -> CostTable:
    kept = [i for i in range(len(headings)) if any(r.values[i] for r in rows)]
    return CostTable(
        title,
        what,
        tuple(CostColumn(headings[i], _is_time(headings[i])) for i in kept),
        tuple(CostRow(r.label, r.detail, tuple(r.values[i] for i in kept)) for r in rows),
        note,
    )


def _is_time(heading: str) -> bool:
    return "wall time" in heading or "waiting" in heading


def _once(runs: Iterable[Numbered]) -> list[Numbered]:
    """Keep one of records that were copied: the same trial, finished at the same second on the same host."""
    kept: dict[tuple[object, ...], Numbered] = {}
    for run in runs:
        r = run.record
        trial = (r.checkpoint_sha256, r.pretrain_seed, r.recipe_hash, r.seed)
        kept.setdefault((*trial, r.host, r.job_id, r.finished), run)
    return list(kept.values())


def _mean(runs: Sequence[Numbered], number: _Number) -> float | None:
    values = [v for r in runs if (v := number(r.record)) is not None]
    return mean(values) if values else None


def _total(runs: Sequence[Numbered], number: _Number) -> float | None:
    values = [v for r in runs if (v := number(r.record)) is not None]
    return sum(values) if values else None


def _hours(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 3600
