"""The papers' own numbers, as data, and which of them a result of ours may stand beside."""

import csv
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from pydantic import field_validator

from configs import Section


class PublishedNumber(Section):
    """One number of one table of one paper.

    `recipe` names our evaluation recipes that follow the table's protocol; `citation` is the paper it was
    typed from, `taken_from` where that paper has it from when it is not its own. Empty cells of the file are
    None: the paper does not say, or it does not apply.
    """

    paper: str
    table: int
    method: str
    variant: str | None
    pretrain_data: str | None
    pretrain_images: int | None
    pretrain_epochs: int | None
    backbone: str | None
    task: str
    detector: str | None
    data: str | None
    label_fraction: float | None
    metric: str
    value: float
    unit: str | None
    recipe: tuple[str, ...]
    citation: str
    taken_from: str | None
    note: str | None

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("recipe", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple((value or "").split())

    @property
    def where(self) -> str:
        """The citation with its table."""
        return f"{self.citation}, Table {self.table}"


@cache
def published_numbers() -> tuple[PublishedNumber, ...]:
    """Read every file of configs/published, in the order of papers, tables and rows."""
    folder = resources.files("configs") / "published"
    found: list[PublishedNumber] = []
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".csv"):
            with resources.as_file(file) as path, path.open(encoding="utf-8", newline="") as lines:
                found += [PublishedNumber.model_validate(row) for row in csv.DictReader(lines)]
    return tuple(sorted(found, key=lambda n: (n.paper, n.table)))


def comparable_numbers(recipe: str, protocol_hash: str, dataset: str) -> Sequence[PublishedNumber]:
    """Return the published numbers of the same protocol and data as a record's.

    A record whose recipe was changed by overrides follows another protocol, and has none.
    """
    numbers = [n for n in published_numbers() if recipe in n.recipe and n.data == dataset]
    return numbers if numbers and _shipped_hash(recipe) == protocol_hash else ()


@cache
def _shipped_hash(recipe: str) -> str:
    import transfer.config  # noqa: F401 (registers the kind)
    from configs import load, recipe_hash

    return recipe_hash(load("transfer", recipe))
