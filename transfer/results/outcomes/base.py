"""Per-image outcomes of an evaluation on file: its metrics are computed from them alone."""

import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from carryover.configs import UserError
from carryover.configs.files import write_atomic
from carryover.configs.formats import Format
from carryover.configs.registry import imported
from carryover.transfer.results.record import Metric

OUTCOMES_NAME: Final = "outcomes.npz"
FORMAT: Final = Format("per-image outcomes", 1)
_HERE: Final = "carryover.transfer.results.outcomes"
KINDS: Final = {
    "rankings": f"{_HERE}.rankings:Rankings",
    "pixels": f"{_HERE}.pixels:Pixels",
    "detections": f"{_HERE}.detections:Detections",
    "class scores": f"{_HERE}.class_scores:ClassScores",
}
_HEADER, _IDS = "header", "ids"

Counts = NDArray[np.int64]
"""(B, N): how often each of N images occurs in each of B samples of them."""


@dataclass(frozen=True, eq=False)
class Outcomes(ABC):
    """Per-image outcomes of one evaluation, and how its metrics come of them.

    Attributes
    ----------
    ids
        What the N test images are called, in the order of the test split: paths below its root, or ids.
    bias_rate
        The power of 1 / N at which the bias of its metrics falls: 1 for smooth functions of means.
    """

    kind: ClassVar[str]
    bias_rate: ClassVar[float] = 1.0

    ids: tuple[str, ...]

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what the metrics depend on besides the arrays, as plain data."""

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Return the outcomes by name."""

    @classmethod
    @abstractmethod
    def of(cls, ids: tuple[str, ...], settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """Return outcomes that `settings` and `arrays` describe."""

    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """Return the metrics that come of these outcomes."""

    @abstractmethod
    def resampled(self, counts: Counts) -> NDArray[np.float64]:
        """Return the metrics' values (B, M) on samples of the images; NaN where one is undefined."""

    def by_class(self) -> dict[str, dict[str, float]]:
        """Return the metrics (percent) that are known of every class, by name and class; none by default."""
        return {}

    def ties(self) -> tuple[int, ...]:
        """Return how many outcomes were ranked by the rule for equal scores, for each set of guesses."""
        return ()


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """Write outcomes as a compressed .npz, atomically; equal outcomes are equal files.

    ``numpy.load`` reads it without pickle: ``header`` is JSON, ``ids`` names the images, the rest are arrays.
    """
    header = FORMAT.stamped({"kind": outcomes.kind, **outcomes.settings()})
    arrays: dict[str, Any] = {
        _HEADER: np.array(json.dumps(header)),
        _IDS: np.array(outcomes.ids, dtype=np.str_),
    }
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays, **outcomes.arrays())
    write_atomic(path, content.getvalue())


def read_outcomes(path: Path) -> Outcomes:
    """Read what `write_outcomes` wrote; raises UserError when the file is missing or is none."""
    try:
        # From memory: numpy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = FORMAT.current(json.loads(str(arrays.pop(_HEADER))), path)
        kind: type[Outcomes] = imported(KINDS[header["kind"]])
        return kind.of(tuple(arrays.pop(_IDS).tolist()), header, arrays)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a file of per-image outcomes ({error})") from None


def metric(name: str, value: float, n: int, params: Mapping[str, Any] | None = None) -> Metric:
    """Return a metric in percent; None where its value is NaN, undefined on this data."""
    defined = None if np.isnan(value) else float(value)
    return Metric(name=name, params=dict(params or {}), value=defined, n=n)
