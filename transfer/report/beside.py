"""Published rows beside ours: the lines of a table that are not our own measurements."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from carryover.transfer.report.collection import Collection, Evaluation
from carryover.transfer.report.comparable import ComparableNumber, comparable_numbers
from carryover.transfer.report.naming import method_name
from carryover.transfer.report.published import PublishedNumber

SAME_PROTOCOL: Final = "Published, of the same protocol and data"
OTHER_PROTOCOL: Final = "Published, of another protocol, or of one that the paper does not state"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a paper's table.

    Attributes
    ----------
    values
        Parallel to the columns of ours, None where the paper has no number.
    own_protocol
        Its protocol where that is not the one of our columns; None where it is.
    """

    method: str
    label: str
    backbone: str
    epochs: int | None
    where: str
    own_protocol: str | None
    values: tuple[float | None, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PublishedRows:
    """The published rows of a table of ours.

    Attributes
    ----------
    same, others
        Rows of the protocols of our columns, and rows of the same data and task whose protocol is another or
        is not stated.
    deviations
        For an evaluation of ours, in what it deviates from the published protocol.
    """

    same: tuple[PublishedRow, ...] = ()
    others: tuple[PublishedRow, ...] = ()
    deviations: tuple[tuple[Evaluation, str], ...] = ()

    @property
    def groups(self) -> tuple[tuple[str, tuple[PublishedRow, ...]], ...]:
        """Either kind of rows under its heading, where there are any."""
        both = ((SAME_PROTOCOL, self.same), (OTHER_PROTOCOL, self.others))
        return tuple((heading, rows) for heading, rows in both if rows)

    @property
    def rows(self) -> tuple[PublishedRow, ...]:
        """All of them."""
        return self.same + self.others

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the notes of all rows, each once."""
        return tuple(dict.fromkeys(note for row in self.rows for note in row.notes))


def published_rows(
    collection: Collection, columns: Sequence[tuple[Evaluation, str]], backbones: Sequence[str]
) -> PublishedRows:
    """Find the published rows of the columns' protocols, data and metrics with the backbones of our rows.

    Parameters
    ----------
    columns
        Evaluation and metric of each column.
    """
    beside = {e: _of(collection, e) for e in dict.fromkeys(evaluation for evaluation, _ in columns)}
    found: dict[tuple[object, ...], dict[int, PublishedNumber]] = {}
    shown: dict[Evaluation, dict[ComparableNumber, None]] = {}
    for at, (evaluation, metric) in enumerate(columns):
        for comparable in beside[evaluation]:
            number = comparable.number
            if number.metric == metric and number.backbone in backbones:
                found.setdefault(_row_of(number), {})[at] = number
                shown.setdefault(evaluation, {})[comparable] = None
    rows = [_row(numbers, len(columns)) for numbers in found.values()]
    return PublishedRows(
        same=tuple(r for r in rows if r.own_protocol is None),
        others=tuple(r for r in rows if r.own_protocol is not None),
        deviations=tuple((e, text) for e, numbers in shown.items() for text in _deviations(numbers)),
    )


def _of(collection: Collection, evaluation: Evaluation) -> Sequence[ComparableNumber]:
    """Compare one record of every recipe name: records of one evaluation share their protocol."""
    records = {
        (r.record.recipe, r.record.protocol is None): r.record for r in collection.by_evaluation[evaluation]
    }
    unique: dict[PublishedNumber, ComparableNumber] = {}
    for record in records.values():
        for comparable in comparable_numbers(record):
            unique.setdefault(comparable.number, comparable)
    return tuple(unique.values())


def _deviations(shown: Iterable[ComparableNumber]) -> list[str]:
    """State each deviation once, with the tables that it is from where others have it not."""
    numbers = list(shown)
    said: dict[str, list[ComparableNumber]] = {}
    for comparable in numbers:
        for text in comparable.deviations:
            said.setdefault(text, []).append(comparable)
    told = []
    for text, of in said.items():
        tables = dict.fromkeys(c.number.where for c in of)
        told.append(text if len(of) == len(numbers) else f"{text} ({'; '.join(tables)})")
    return told


def _row_of(number: PublishedNumber) -> tuple[object, ...]:
    return (
        number.where,
        number.method,
        number.variant,
        number.backbone,
        number.pretrain_epochs,
        number.pretrain_images,
        number.own_protocol,
    )


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
        own_protocol=first.own_protocol,
        values=tuple(numbers[i].value if i in numbers else None for i in range(width)),
        notes=tuple(sorted({n.note for n in numbers.values() if n.note})),
    )
