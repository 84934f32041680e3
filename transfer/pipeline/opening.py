"""The data of a plan, opened before anything is run or submitted: every error of every stage at once."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carryover.configs import CarryoverError
from carryover.configs.loading import validate
from carryover.slurm.plan import Decision, working
from carryover.slurm.stage import Output, Stage


@dataclass(frozen=True)
class DataProblem:
    """Problems of the data of some stages, as the stages would report them."""

    text: str
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Opened:
    """Number of data sets that were opened, are to be made or are missing, and their problems."""

    data_sets: int
    not_there: int
    problems: tuple[DataProblem, ...]


def open_data(plan: Sequence[Decision]) -> Opened:
    """Read what the stages that would run read before they train: splits, classes, labels, masks, defects.

    Data that an earlier stage makes, and roots that do not exist, are passed over. Of several seeds one is
    looked at. Nothing is written but what is remembered of decoded pictures.
    """
    wrong: dict[str, list[str]] = {}
    seen: dict[str, str | None] = {}
    not_there = 0
    for stage in _reading(d.stage for d in working(list(plan))):
        recipe = stage.params["recipe"]
        root = recipe.get("data", {}).get("root")
        if isinstance(root, Output) or root is None or not Path(root).is_dir():
            not_there += 1
            continue
        key = json.dumps({k: v for k, v in recipe.items() if k != "seed"}, sort_keys=True, default=str)
        if key not in seen:
            seen[key] = _problem(stage)
        if (problem := seen[key]) is not None:
            wrong.setdefault(problem, []).append(stage.name)
    problems = tuple(DataProblem(text, tuple(stages)) for text, stages in wrong.items())
    return Opened(len(seen), not_there, problems)


def _reading(stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages that read data, the first seed of each before the others."""
    return [s for s in stages if s.calls.name in ("evaluate", "pretrain")]


def _problem(stage: Stage) -> str | None:
    try:
        _open(stage)
    except CarryoverError as error:
        return str(error)
    return None


def _open(stage: Stage) -> None:
    recipe: dict[str, Any] = {**stage.params["recipe"], "name": stage.params["name"]}
    if stage.calls.name == "pretrain":
        from carryover.core.data.opening import open_dataset
        from carryover.pretrain.config import PretrainConfig

        config = validate(PretrainConfig, recipe, stage.name)
        if config.method.trains:
            open_dataset(config.data)
        return
    from carryover.core.data.labelled.images import LabeledImages
    from carryover.transfer.tasks.config import TransferConfig, implementation_of

    evaluation = validate(TransferConfig, recipe, stage.name)
    data = implementation_of(evaluation).prepare(evaluation)
    if isinstance(data, LabeledImages):
        # Only checked by name until its images are wanted.
        data.look()
