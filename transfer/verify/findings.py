"""Result of a verification: the named cause, and all measurements."""

from dataclasses import dataclass, field
from typing import Literal

Cause = Literal[
    "channel order",
    "mean/std",
    "stem",
    "stride",
    "padding",
    "encoder",
    "size",
    "batch-norm statistics",
    "random weights",
]


@dataclass(frozen=True)
class Finding:
    """The likely cause of what is off, why it is named, and what to do."""

    cause: Cause
    words: str
    why: str
    remedy: str = ""


@dataclass(frozen=True)
class Reading:
    """One reading of the file beside the file as it is, on the same test images.

    Attributes
    ----------
    difference, low, high, p
        Its accuracy minus the file's (percentage points), mean of k-NN and linear, with its 95 % interval and
        the one-sided p-value of being no better, adjusted for all readings (Holm 1979); None without labels.
    mismatch
        Distance of its batch statistics from its running ones, 0 to 1; None without batch norms.
    """

    cause: str
    words: str
    knn: float | None
    linear: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    mismatch: float | None = None


@dataclass(frozen=True)
class Claim:
    """A published number of the claimed method, and what this file came to."""

    number: str
    published: float
    measured: float
    how: str

    @property
    def difference(self) -> float:
        """Measured minus published, in points."""
        return self.measured - self.published


@dataclass(frozen=True)
class Verification:
    """Result of `carryover verify` for a file.

    Attributes
    ----------
    named
        The likely cause; None where nothing speaks against the file's claims.
    readings
        The file as it is first, then every other reading that was measured.
    open_questions
        What the images at hand cannot tell.
    """

    path: str
    about: str
    images: str
    named: Finding | None
    readings: tuple[Reading, ...]
    controls: tuple[Reading, ...] = ()
    claims: tuple[Claim, ...] = ()
    remarks: tuple[str, ...] = ()
    open_questions: tuple[str, ...] = ()
    layers: tuple[tuple[str, float], ...] = field(default=(), repr=False)
