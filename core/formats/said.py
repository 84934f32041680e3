"""Statements of the user about a checkpoint that does not state them itself (torch-free)."""

import re
from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import AfterValidator

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def label_of(name: str) -> str:
    """Return a label made of a file's name; "" where nothing of it can be part of one."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("_.-")


def checked_label(label: str) -> str:
    """Return a label that can be part of a stage's name; raises ValueError for another, with one that can."""
    if _LABEL.fullmatch(label):
        return label
    fitting = label_of(label)
    hint = f"; '{fitting}' would do" if fitting else ""
    raise ValueError(
        f"a label is made of letters, digits, '_', '.' and '-', and begins with a letter or digit{hint}"
    )


Label = Annotated[str, AfterValidator(checked_label)]


@dataclass(frozen=True)
class Said:
    """Facts about a checkpoint; None if not stated.

    Attributes
    ----------
    label
        What records and reports call its row.
    method, dataset, epochs
        How it was pretrained, on what and for how long.
    input_size
        Side in pixels of the crops that it was trained on.
    """

    label: str | None = None
    method: str | None = None
    dataset: str | None = None
    epochs: float | None = None
    input_size: int | None = None

    def stated(self) -> dict[str, Any]:
        """Return the statements, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}
