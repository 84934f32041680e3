"""Two runs or two checkpoints side by side: their numbers, what differs in their recipes, their tensors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from carryover.configs import UserError
from carryover.configs.identity import leaves
from carryover.core.formats.checkpoint_files import FOLDERS, INDEX, sha256_checkpoint
from carryover.transfer.report.cells import Cell, build_cell
from carryover.transfer.report.collection import Collection, Evaluation, Numbered, Pretraining, collect
from carryover.transfer.report.naming import metric_name
from carryover.transfer.report.paired import ResampledRuns, difference_of, mismatch
from carryover.transfer.report.statistics import Interval, possible_differences, welch
from carryover.transfer.results.reading import Problem, read_records
from carryover.transfer.results.record import ResultRecord
from carryover.transfer.tasks.evaluate import is_canonical

RECIPE_NAME = "recipe.yaml"
_Lacking = list[tuple[str, Evaluation]]
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
    """One metric of one evaluation in both.

    Attributes
    ----------
    interval
        Of second minus first, 95 %: image by image where both saw the same test images, else Welch's over
        seeds, else from the intervals of the two.
    note
        In what the two evaluations differ; "" for one protocol.
    """

    evaluation: str
    metric: str
    first: Cell
    second: Cell
    interval: Interval | None
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Second minus first."""
        if self.first.mean is None or self.second.mean is None:
            return None
        return self.second.mean - self.first.mean


@dataclass(frozen=True)
class Comparison:
    """Everything that tells two runs or checkpoints apart.

    `only_first` and `only_second` name evaluations that the other lacks; `problems` are unreadable records;
    `tensors` says of two checkpoints in a sentence whether they hold the same.
    """

    first: str
    second: str
    recipe: tuple[Difference, ...]
    lines: tuple[Line, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    problems: tuple[Problem, ...]
    tensors: str = ""


def compare(first: Path, second: Path) -> Comparison:
    """Compare two checkpoints (tensors, and what they say of themselves), or the records of two runs.

    Of runs with one pretraining each, those two are compared, whatever they are; of others, the
    pretrainings that both have. An evaluation that both have by other protocols (another back end, another
    key) is shown with what differs.

    Raises
    ------
    UserError
        A path that is not there, a checkpoint beside a run, a run without records, or no pretraining in both.
    """
    for path in (first, second):
        if not path.exists():
            raise UserError(f"{path}: no such run or checkpoint")
    kinds = [_is_checkpoint(path) for path in (first, second)]
    if all(kinds):
        return _checkpoints(first, second)
    if any(kinds):
        raise UserError(f"{first} and {second}: compare two checkpoints or two runs, not one with the other")
    ours, problems = _collected(first)
    theirs, more = _collected(second)
    pairs = _pairs(ours, theirs, first, second)
    lines: list[Line] = []
    only: tuple[list[str], list[str]] = ([], [])
    recipes: list[Difference] = []
    for label, one, other in pairs:
        recipes += _prefixed(label, _differences(*_recipes((ours, one), (theirs, other))))
        missing: tuple[_Lacking, _Lacking] = ([], [])
        for evaluation in dict.fromkeys([*ours.evaluations, *theirs.evaluations]):
            runs = ours.runs.get((one, evaluation), ()), theirs.runs.get((other, evaluation), ())
            caption = label + (ours.captions.get(evaluation) or theirs.captions[evaluation])
            if all(runs):
                lines += _lines(caption, evaluation, ours, runs)
            elif any(runs):
                missing[0 if runs[0] else 1].append((caption, evaluation))
        for caption, evaluation, counterpart in _counterparts(*missing, ours, theirs):
            runs = ours.runs[one, evaluation], theirs.runs[other, counterpart]
            note = _protocols(runs[0][0].record, runs[1][0].record)
            lines += _lines(caption, evaluation, ours, runs, note)
        for names, side in zip(only, missing):
            names += [caption for caption, _ in side]
    return Comparison(
        str(first),
        str(second),
        tuple(recipes),
        tuple(lines),
        tuple(only[0]),
        tuple(only[1]),
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


def _counterparts(
    first: _Lacking, second: _Lacking, ours: Collection, theirs: Collection
) -> list[tuple[str, Evaluation, Evaluation]]:
    """Take out of both sides what is of one recipe's name, data set and split, where each has one of it."""

    def kind(side: Collection, evaluation: Evaluation) -> tuple[str, ...]:
        recipe = side.by_evaluation[evaluation][0].record.recipe
        return (recipe, evaluation.task, evaluation.dataset, evaluation.split)

    found = []
    for caption, evaluation in list(first):
        wanted = kind(ours, evaluation)
        own = [pair for pair in first if kind(ours, pair[1]) == wanted]
        other = [pair for pair in second if kind(theirs, pair[1]) == wanted]
        if len(own) == len(other) == 1:
            first.remove(own[0])
            second.remove(other[0])
            found.append((caption, evaluation, other[0][1]))
    return found


def _protocols(first: ResultRecord, second: ResultRecord) -> str:
    """Name the keys in which two evaluations differ, with both values."""
    said = [_flat(r.protocol or {}) for r in (first, second)]
    own = [
        {"backend": f"{r.backend} {r.backend_version}", "version of the task": str(r.task_version)}
        | {"data": (r.data_digest or "not known")[:8]}
        for r in (first, second)
    ]
    found = _differences(said[0] | own[0], said[1] | own[1])
    return ", ".join(f"{d.key}: {d.first or '-'} | {d.second or '-'}" for d in found) or "other selections"


def _lines(
    caption: str,
    evaluation: Evaluation,
    ours: Collection,
    runs: tuple[Sequence[Numbered], Sequence[Numbered]],
    note: str = "",
) -> list[Line]:
    lines = []
    first_runs, second_runs = (ResampledRuns.of(side) for side in runs)
    same_images = not (first_runs.problem or second_runs.problem or mismatch(first_runs, second_runs))
    for metric in ours.metrics(evaluation):
        first, second = (build_cell(r, metric.label) for r in runs)
        interval = None
        if same_images and first.mean is not None and second.mean is not None:
            found = difference_of(second_runs, first_runs, metric)
            interval = None if found is None else Interval(found.difference, found.low, found.high)
        elif (over_seeds := welch(second.values, first.values)) is not None:
            interval = over_seeds
        elif first.interval and second.interval and first.mean is not None and second.mean is not None:
            apart = second.mean - first.mean
            half = math.hypot(*((high - low) / 2 for low, high in (first.interval, second.interval)))
            interval = Interval(apart, apart - half, apart + half)
        if interval is not None:
            interval = interval.within(possible_differences(first.possible))
        lines.append(Line(caption, metric_name(metric), first, second, interval, note))
    return lines


def _is_checkpoint(path: Path) -> bool:
    if path.is_file():
        return path.suffix != ".json" or path.name.endswith(INDEX)
    return any((path / name).is_file() for name in FOLDERS)


def _checkpoints(first: Path, second: Path) -> Comparison:
    """Compare two files of any maker: what is known of them, and every tensor of their backbones."""
    import torch

    from carryover.core.backbones.importers import take_backbone
    from carryover.core.formats.canonical import CanonicalMetadata, load_canonical

    def taken(path: Path) -> tuple[Mapping[str, torch.Tensor], CanonicalMetadata]:
        if is_canonical(path):
            return load_canonical(path)
        one = take_backbone(path)
        return one.state, one.metadata

    (a, ours), (b, theirs) = (taken(path) for path in (first, second))
    said = [
        _flat(about.model_dump(mode="json")) | {"sha256": sha256_checkpoint(path)}
        for about, path in ((ours, first), (theirs, second))
    ]
    shared = [n for n in a if n in b and a[n].shape == b[n].shape]
    equal = [n for n in shared if torch.equal(a[n], b[n])]
    told = f"{len(equal)} of {len(a.keys() | b.keys())} tensors of the backbones are equal"
    if len(equal) < len(shared):
        apart = {n: float((a[n].double() - b[n].double()).abs().max()) for n in shared if n not in equal}
        worst = max(apart, key=lambda n: apart[n])
        told += f"; the largest difference is {apart[worst]:.3g}, of {worst}"
    lacking = sorted((a.keys() ^ b.keys()) | {n for n in a.keys() & b.keys() if a[n].shape != b[n].shape})
    if lacking:
        told += f"; {len(lacking)} are in one alone, or of another shape: {', '.join(lacking[:3])}"
    return Comparison(str(first), str(second), _differences(*said), (), (), (), (), told)


def _recipes(*sides: tuple[Collection, Pretraining]) -> list[dict[str, str]]:
    """Return the recipes of pretrainings, or of all what records state where the recipe of one is unknown."""
    records = [collection.by_pretraining[pretraining][0].record for collection, pretraining in sides]
    found = [_recipe_beside(Path(record.checkpoint)) for record in records]
    if any(recipe is None for recipe in found):
        found = [
            {
                "method": r.method,
                "backbone": r.backbone,
                "epochs": r.pretrain_epochs,
                "dataset": r.pretrain_dataset,
            }
            for r in records
        ]
    return [{k: v for k, v in _flat(recipe or {}).items() if k not in _OF_THE_RUN} for recipe in found]


def _recipe_beside(checkpoint: Path) -> dict[str, Any] | None:
    """Read the recipe beside a pretraining's checkpoint; an import lies beside that of an evaluation."""
    path = checkpoint.parent / RECIPE_NAME
    if not path.is_file():
        return None
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a recipe ({error})") from None
    return read if isinstance(read, dict) and "task" not in read else None


def _flat(tree: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in leaves(tree).items()}


def _differences(first: Mapping[str, str], second: Mapping[str, str]) -> tuple[Difference, ...]:
    keys = dict.fromkeys([*first, *second])
    return tuple(Difference(k, first.get(k), second.get(k)) for k in keys if first.get(k) != second.get(k))


def _prefixed(label: str, differences: Sequence[Difference]) -> list[Difference]:
    return [Difference(label + d.key, d.first, d.second) for d in differences]
