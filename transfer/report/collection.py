"""Records sorted into what a report is made of: pretrainings (rows) and evaluations (columns)."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from carryover.core.data.called import PLACEHOLDER
from carryover.transfer.report.naming import (
    BASELINES,
    headline_metrics,
    method_name,
    share,
    task_name,
    task_order,
)
from carryover.transfer.results.reading import StoredRecord
from carryover.transfer.results.record import Metric, ResultRecord

Identity = TypeVar("Identity", bound=Hashable)


@dataclass(frozen=True)
class Numbered:
    """A record under the number that the report knows it by."""

    number: int
    path: Path
    record: ResultRecord


@dataclass(frozen=True)
class Pretraining:
    """Key of a row: two records in one row may differ in the seed only.

    `checkpoint_sha256` is None unless two backbones claim one recipe and seed: then each has its own row.
    It is the backbone's digest, or the file's where that is not known. `label` is the name that the user has
    given; rows of different labels are different pretrainings.
    """

    recipe: str
    method: str
    backbone: str
    epochs: float | None
    dataset: str
    checkpoint_sha256: str | None = None
    label: str | None = None

    @property
    def baseline(self) -> bool:
        """Return whether this is a baseline: random initialization or supervised pretraining."""
        return self.method in BASELINES

    @property
    def order(self) -> tuple[int, str, str, float, str]:
        """Sort key: baselines first, as the papers print them, then by name."""
        rank = BASELINES.index(self.method) if self.baseline else len(BASELINES)
        return (rank, method_name(self.method).lower(), self.backbone, self.epochs or 0, repr(self))


@dataclass(frozen=True)
class Evaluation:
    """Key of a column: protocol, data, and the library.

    `data_digest` is None unless records of one protocol were measured on data that differ: then each set of
    data has its own column.
    """

    task: str
    dataset: str
    split: str
    recipe_hash: str
    task_version: int
    backend: str
    backend_version: str
    selection: str
    selected_on: str | None
    data_digest: str | None = None


@dataclass(frozen=True)
class Collection:
    """All records of a report, sorted.

    Attributes
    ----------
    records
        In the order of their paths; record k has number k + 1.
    runs
        The records of every (pretraining, evaluation) that has any.
    labels, captions
        Short, distinct names of the pretrainings and of the evaluations.
    """

    records: tuple[Numbered, ...]
    runs: dict[tuple[Pretraining, Evaluation], tuple[Numbered, ...]]
    labels: dict[Pretraining, str]
    captions: dict[Evaluation, str]

    @cached_property
    def pretrainings(self) -> tuple[Pretraining, ...]:
        """Every row of the report, in order."""
        return tuple(self.labels)

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Every column group of the report, in order."""
        return tuple(self.captions)

    @cached_property
    def by_evaluation(self) -> dict[Evaluation, tuple[Numbered, ...]]:
        """The records of each evaluation, whatever was pretrained."""
        found: dict[Evaluation, list[Numbered]] = defaultdict(list)
        for (_, evaluation), runs in self.runs.items():
            found[evaluation] += runs
        return {e: tuple(sorted(found[e], key=lambda r: r.number)) for e in self.evaluations}

    @cached_property
    def by_pretraining(self) -> dict[Pretraining, tuple[Numbered, ...]]:
        """The records of each pretraining, whatever was evaluated."""
        found: dict[Pretraining, list[Numbered]] = defaultdict(list)
        for (pretraining, _), runs in self.runs.items():
            found[pretraining] += runs
        return {p: tuple(sorted(found[p], key=lambda r: r.number)) for p in self.pretrainings}

    @cached_property
    def seeds(self) -> dict[Evaluation, frozenset[int]]:
        """The evaluation seeds that any record of each evaluation has."""
        return {e: frozenset(r.record.seed for r in runs) for e, runs in self.by_evaluation.items()}

    def metrics(self, evaluation: Evaluation) -> list[Metric]:
        """Return one of each of the evaluation's metrics, in the order in which the records name them."""
        named: dict[str, Metric] = {}
        for run in self.by_evaluation[evaluation]:
            for metric in run.record.metrics:
                named.setdefault(metric.label, metric)
        return list(named.values())

    def headlines(self, evaluation: Evaluation) -> list[Metric]:
        """Return the metrics that the combined tables show."""
        named = {m.label: m for m in self.metrics(evaluation)}
        return [named[m] for m in headline_metrics(evaluation.task, list(named))]


def collect(records: Sequence[StoredRecord]) -> Collection:
    """Sort records into pretrainings and evaluations, and name both."""
    named = _named_alike([r.record for r in records])
    numbered = tuple(Numbered(i, r.path, n) for i, (r, n) in enumerate(zip(records, named), start=1))
    backbones = _Backbones(numbered)
    rivals, mended = _rival_checkpoints(numbered, backbones), _mended_data(numbered)
    grouped: dict[tuple[Pretraining, Evaluation], list[Numbered]] = defaultdict(list)
    for run in numbered:
        pretraining, evaluation = _pretraining(run.record), _evaluation(run.record)
        if pretraining in rivals:
            pretraining = _pretraining(run.record, backbones.of(run.record))
        if evaluation in mended:
            evaluation = replace(evaluation, data_digest=run.record.data_digest)
        grouped[pretraining, evaluation].append(run)
    pretrainings = sorted({p for p, _ in grouped}, key=lambda p: p.order)
    first = {e: runs[0].record for (_, e), runs in grouped.items()}
    evaluations = sorted(first, key=lambda e: _evaluation_order(e, first[e]))
    return Collection(
        records=numbered,
        runs={k: tuple(v) for k, v in grouped.items()},
        labels=_distinct(pretrainings, _PRETRAINING_NAMES),
        captions=_distinct(evaluations, [_with_record(f, first) for f in _EVALUATION_NAMES]),
    )


def _named_alike(records: Sequence[ResultRecord]) -> list[ResultRecord]:
    """Return records of one data set under one name: older ones have no name for data of one's own."""
    names = {r.data_digest: r.dataset for r in records if r.data_digest and r.dataset != PLACEHOLDER}
    return [
        r.model_copy(update={"dataset": names[r.data_digest]})
        if r.dataset == PLACEHOLDER and r.data_digest in names
        else r
        for r in records
    ]


def _pretraining(record: ResultRecord, sha256: str | None = None) -> Pretraining:
    return Pretraining(
        record.pretrain_recipe,
        record.method,
        record.backbone,
        record.pretrain_epochs,
        record.pretrain_dataset,
        sha256,
        record.pretrain_label,
    )


def _evaluation(record: ResultRecord) -> Evaluation:
    return Evaluation(
        record.task,
        record.dataset,
        record.split,
        record.recipe_hash,
        record.task_version,
        record.backend,
        record.backend_version,
        record.selection,
        record.selected_on,
    )


class _Backbones:
    """Return the backbone of a record: by its digest, which older records may lack."""

    def __init__(self, records: Sequence[Numbered]) -> None:
        known = ((r.record.checkpoint_sha256, r.record.backbone_digest) for r in records)
        self._digests = {sha256: digest for sha256, digest in known if digest is not None}

    def of(self, record: ResultRecord) -> str:
        """Return the backbone's digest, or its file's where nothing tells more."""
        file = record.checkpoint_sha256
        return record.backbone_digest or self._digests.get(file, file)


def _rival_checkpoints(records: Sequence[Numbered], backbones: _Backbones) -> set[Pretraining]:
    """Find pretrainings of which one seed has more than one backbone."""
    found: dict[tuple[Pretraining, int | None], set[str]] = defaultdict(set)
    for run in records:
        found[_pretraining(run.record), run.record.pretrain_seed].add(backbones.of(run.record))
    return {pretraining for (pretraining, _), digests in found.items() if len(digests) > 1}


def _mended_data(records: Sequence[Numbered]) -> set[Evaluation]:
    """Find evaluations whose records were measured on data that are known to differ."""
    found: dict[Evaluation, set[str]] = defaultdict(set)
    for run in records:
        if run.record.data_digest is not None:
            found[_evaluation(run.record)].add(run.record.data_digest)
    return {evaluation for evaluation, digests in found.items() if len(digests) > 1}


def _evaluation_order(evaluation: Evaluation, record: ResultRecord) -> tuple[object, ...]:
    fraction = 2.0 if record.label_fraction is None else record.label_fraction
    return (
        task_order(evaluation.task),
        evaluation.dataset,
        fraction,
        len(record.metrics),
        record.recipe,
        repr(evaluation),
    )


def what(record: ResultRecord) -> str:
    """Return an evaluation's short name: detector or segmenter, task, share of the labels, or the recipe."""
    if record.model is not None:
        part = record.label_fraction is not None and record.label_fraction < 1
        return f"{record.model}, {labeled(record)}" if part else record.model
    if record.label_fraction is None:
        return record.recipe
    labels = labeled(record)
    if record.task == "finetune":
        return labels
    name = task_name(record.task)
    return name if record.label_fraction == 1 else f"{name}, {labels}"


def labeled(record: ResultRecord) -> str:
    """Return the number of labels in the recipe's terms: ``5 labels per class``, ``1 % of the labels``."""
    chosen = (record.protocol or {}).get("labels")
    if isinstance(chosen, dict) and chosen.get("name") == "per_class":
        number = chosen["images"]
        return f"{number} label{'s' if number != 1 else ''} per class"
    return f"{share(record.label_fraction or 0)} of the labels"


def _epochs(pretraining: Pretraining) -> str:
    return "" if pretraining.epochs is None else f", {pretraining.epochs:g} epochs"


_PRETRAINING_NAMES: list[Callable[[Pretraining], str]] = [
    lambda p: p.label or method_name(p.method),
    lambda p: (p.label or method_name(p.method)) + _epochs(p),
    lambda p: f"{method_name(p.method)}, {p.backbone}",
    lambda p: f"{method_name(p.method)}, {p.backbone}{_epochs(p)}",
    lambda p: p.recipe,
    lambda p: f"{p.recipe}, {p.backbone}{_epochs(p)}, {p.dataset}",
    lambda p: f"{p.recipe}, {p.backbone}{_epochs(p)}, {p.dataset}, {(p.checkpoint_sha256 or '')[:8]}",
]

_EVALUATION_NAMES: list[Callable[[Evaluation, ResultRecord], str]] = [
    lambda e, r: what(r),
    lambda e, r: f"{what(r)}, {e.dataset}",
    lambda e, r: f"{what(r)}, {r.recipe}",
    lambda e, r: f"{what(r)}, {e.backend}",
    lambda e, r: f"{what(r)}, {e.backend} {e.backend_version}",
    lambda e, r: f"{what(r)}, {e.selection}",
    lambda e, r: f"{what(r)}, {e.split}",
    lambda e, r: f"{what(r)}, data {(e.data_digest or 'unknown')[:8]}",
    lambda e, r: f"{what(r)}, version {e.task_version} of the task",
    lambda e, r: f"{what(r)}, {r.recipe}, {e.recipe_hash[:8]}",
    lambda e, r: (
        f"{what(r)}, {r.recipe}, {e.recipe_hash[:8]}, {e.dataset} {e.split}, {e.backend} {e.backend_version},"
        f" {e.selection} {e.selected_on or ''} v{e.task_version} {(e.data_digest or '')[:8]}".rstrip()
    ),
]


def _with_record(
    name: Callable[[Evaluation, ResultRecord], str], first: dict[Evaluation, ResultRecord]
) -> Callable[[Evaluation], str]:
    return lambda evaluation: name(evaluation, first[evaluation])


def _distinct(things: Sequence[Identity], names: Sequence[Callable[[Identity], str]]) -> dict[Identity, str]:
    """Give each thing the first of its names that tells it from those it shares its shorter name with."""
    chosen: dict[Identity, str] = {}

    def settle(group: Sequence[Identity]) -> None:
        for name in names:
            called = [name(t) for t in group]
            if len(set(called)) == len(group) or name is names[-1]:
                chosen.update(zip(group, called))
                return

    shortest: dict[str, list[Identity]] = defaultdict(list)
    for thing in things:
        shortest[names[0](thing)].append(thing)
    for group in shortest.values():
        settle(group)
    return {thing: chosen[thing] for thing in things}
