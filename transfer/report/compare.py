"""Two runs or two checkpoints side by side: their numbers, and what differs in their recipes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from carryover.configs import UserError
from carryover.configs.files import sha256_file
from carryover.configs.identity import leaves
from carryover.core.formats.canonical import read_metadata
from carryover.transfer.report.cells import Cell, build_cell
from carryover.transfer.report.collection import Collection, Evaluation, Pretraining, collect
from carryover.transfer.report.naming import metric_name
from carryover.transfer.report.statistics import Interval, welch
from carryover.transfer.results.reading import Problem, read_records

RECIPE_NAME = "recipe.yaml"
# Differ between any two runs and say nothing about what was done.
_OF_THE_RUN = ("name", "seed")


@dataclass(frozen=True)
class Difference:
    """One setting that is not the same in both; None where one has none."""

    key: str
    first: str | None
    second: str | None


@dataclass(frozen=True)
class Line:
    """One metric of one evaluation in both; `interval` is Welch's for second minus first."""

    evaluation: str
    metric: str
    first: Cell
    second: Cell
    interval: Interval | None

    @property
    def difference(self) -> float | None:
        """Second minus first."""
        if self.first.mean is None or self.second.mean is None:
            return None
        return self.second.mean - self.first.mean


@dataclass(frozen=True)
class Comparison:
    """Everything that tells two runs or checkpoints apart.

    `only_first` and `only_second` name evaluations that the other lacks; `problems` are unreadable records.
    """

    first: str
    second: str
    recipe: tuple[Difference, ...]
    lines: tuple[Line, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    problems: tuple[Problem, ...]


def compare(first: Path, second: Path) -> Comparison:
    """Compare two canonical checkpoints (by what they say of themselves), or the records of two runs.

    Of runs with one pretraining each, those two are compared, whatever they are; of others, the
    pretrainings that both have. Numbers are compared only under the same protocol.

    Raises
    ------
    UserError
        A path that is not there, a checkpoint beside a run, a run without records, or no pretraining in both.
    """
    for path in (first, second):
        if not path.exists():
            raise UserError(f"{path}: no such run or checkpoint")
    kinds = [path.suffix == ".safetensors" for path in (first, second)]
    if all(kinds):
        said = [
            _flat(read_metadata(p).model_dump(mode="json")) | {"sha256": sha256_file(p)}
            for p in (first, second)
        ]
        return Comparison(str(first), str(second), _differences(*said), (), (), (), ())
    if any(kinds):
        raise UserError(f"{first} and {second}: compare two checkpoints or two runs, not one with the other")
    ours, problems = _collected(first)
    theirs, more = _collected(second)
    pairs = _pairs(ours, theirs, first, second)
    lines: list[Line] = []
    missing: tuple[list[str], list[str]] = ([], [])
    recipes: list[Difference] = []
    for label, one, other in pairs:
        recipes += _prefixed(label, _differences(_recipe(ours, one), _recipe(theirs, other)))
        for evaluation in dict.fromkeys([*ours.evaluations, *theirs.evaluations]):
            runs = ours.runs.get((one, evaluation), ()), theirs.runs.get((other, evaluation), ())
            caption = label + (ours.captions.get(evaluation) or theirs.captions[evaluation])
            if all(runs):
                lines += _lines(caption, evaluation, ours, runs)
            elif any(runs):
                missing[0 if runs[0] else 1].append(caption)
    return Comparison(
        str(first),
        str(second),
        tuple(recipes),
        tuple(lines),
        tuple(missing[0]),
        tuple(missing[1]),
        (*problems, *more),
    )


def _collected(run: Path) -> tuple[Collection, list[Problem]]:
    records, problems = read_records([run])
    if not records:
        raise UserError(f"{run}: no result records there; nothing to compare")
    return collect(records), problems


def _pairs(
    ours: Collection, theirs: Collection, first: Path, second: Path
) -> list[tuple[str, Pretraining, Pretraining]]:
    if len(ours.pretrainings) == len(theirs.pretrainings) == 1:
        return [("", ours.pretrainings[0], theirs.pretrainings[0])]
    both = [p for p in ours.pretrainings if p in theirs.labels]
    if not both:
        raise UserError(f"{first} and {second}: no pretraining is in both")
    return [(f"{ours.labels[p]}: ", p, p) for p in both]


def _lines(
    caption: str, evaluation: Evaluation, ours: Collection, runs: tuple[Sequence[Any], Sequence[Any]]
) -> list[Line]:
    lines = []
    for metric in ours.metrics(evaluation):
        first, second = (build_cell(r, metric.label) for r in runs)
        interval = welch(second.values, first.values) if first.n > 1 and second.n > 1 else None
        lines.append(Line(caption, metric_name(metric), first, second, interval))
    return lines


def _recipe(collection: Collection, pretraining: Pretraining) -> dict[str, str]:
    """Read the recipe beside the checkpoint of a pretraining, or what its records say where it is gone."""
    record = collection.by_pretraining[pretraining][0].record
    path = Path(record.checkpoint).parent / RECIPE_NAME
    said: dict[str, Any] = {
        "method": record.method,
        "backbone": record.backbone,
        "epochs": record.pretrain_epochs,
        "dataset": record.pretrain_dataset,
    }
    if path.is_file():
        try:
            read = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a recipe ({error})") from None
        said = read if isinstance(read, dict) else said
    return {k: v for k, v in _flat(said).items() if k not in _OF_THE_RUN}


def _flat(tree: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in leaves(tree).items()}


def _differences(first: Mapping[str, str], second: Mapping[str, str]) -> tuple[Difference, ...]:
    keys = dict.fromkeys([*first, *second])
    return tuple(Difference(k, first.get(k), second.get(k)) for k in keys if first.get(k) != second.get(k))


def _prefixed(label: str, differences: Sequence[Difference]) -> list[Difference]:
    return [Difference(label + d.key, d.first, d.second) for d in differences]
