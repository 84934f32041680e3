"""Published rows beside ours: the lines of a table that are not our own measurements."""

from collections.abc import Sequence
from dataclasses import dataclass

from transfer.report.collection import Collection, Evaluation
from transfer.report.naming import method_name
from transfer.report.published import PublishedNumber, comparable_numbers


@dataclass(frozen=True)
class PublishedRow:
    """One row of a paper's table; `values` are parallel to the columns of ours, None where it has none."""

    method: str
    label: str
    backbone: str
    epochs: int | None
    where: str
    values: tuple[float | None, ...]
    notes: tuple[str, ...]


def published_rows(
    collection: Collection, columns: Sequence[tuple[Evaluation, str]], backbones: Sequence[str]
) -> tuple[PublishedRow, ...]:
    """Find the published rows of the columns' protocols, data and metrics with the backbones of our rows.

    Parameters
    ----------
    columns
        Evaluation and metric of each column.
    """
    found: dict[tuple[object, ...], dict[int, PublishedNumber]] = {}
    for at, (evaluation, metric) in enumerate(columns):
        for number in _of(collection, evaluation):
            if number.metric == metric and number.backbone in backbones:
                key = (number.where, number.method, number.variant, number.backbone, number.pretrain_epochs)
                found.setdefault((*key, number.pretrain_images), {})[at] = number
    return tuple(_row(numbers, len(columns)) for numbers in found.values())


def _of(collection: Collection, evaluation: Evaluation) -> Sequence[PublishedNumber]:
    recipes = sorted({r.record.recipe for r in collection.by_evaluation[evaluation]})
    unique: dict[PublishedNumber, None] = {}
    for recipe in recipes:
        for number in comparable_numbers(recipe, evaluation.recipe_hash, evaluation.dataset):
            unique[number] = None
    return tuple(unique)


def _row(numbers: dict[int, PublishedNumber], width: int) -> PublishedRow:
    first = next(iter(numbers.values()))
    origin = f", from {first.taken_from}" if first.taken_from else ""
    images = None
    if first.pretrain_images:
        images = f"{first.pretrain_images:,} images"
    detail = ", ".join(filter(None, (first.variant, images)))
    name = method_name(first.method)
    return PublishedRow(
        method=first.method,
        label=f"{name} ({detail})" if detail else name,
        backbone=first.backbone or "",
        epochs=first.pretrain_epochs,
        where=first.where + origin,
        values=tuple(numbers[i].value if i in numbers else None for i in range(width)),
        notes=tuple(sorted({n.note for n in numbers.values() if n.note})),
    )
