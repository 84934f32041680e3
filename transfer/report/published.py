"""The papers' own numbers, as data."""

import csv
from functools import cache
from importlib import resources
from typing import Any

from pydantic import field_validator

from carryover.configs import Section


class PublishedNumber(Section):
    """One number of one table of one paper.

    Empty cells of the file are None: the paper does not say, or it does not apply.

    Attributes
    ----------
    data
        The data set under the title that records give it, where a shipped recipe has it.
    recipe
        Our evaluation recipes that follow the table's protocol.
    own_protocol
        The protocol of this row where it is another than the recipe's, or where the paper does not state it;
        None: the row follows its recipe.
    backend
        The library that the number was measured with, as records call it; None where there is no choice.
    citation, taken_from
        The paper it was typed from, and where that paper has it from when it is not its own.
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
    own_protocol: str | None
    backend: str | None
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
    folder = resources.files("carryover.configs") / "published"
    found: list[PublishedNumber] = []
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".csv"):
            with resources.as_file(file) as path, path.open(encoding="utf-8", newline="") as lines:
                found += [PublishedNumber.model_validate(row) for row in csv.DictReader(lines)]
    return tuple(sorted(found, key=lambda n: (n.paper, n.table)))
