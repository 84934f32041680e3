"""One thing that `carryover doctor` looked for."""

from dataclasses import dataclass
from importlib import metadata
from typing import Literal

State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes
    ----------
    needed
        Whether carryover cannot work without it.
    remedy
        How to get it, or where upstream explains that; empty when nothing is missing.
    """

    what: str
    state: State
    detail: str
    needed: bool = False
    remedy: str = ""


def version(distribution: str) -> str:
    """Return the version of what is installed; "" where it is not."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
