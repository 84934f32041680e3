"""A grid of rates on file: what every point came to on the held-out labeled images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from carryover.configs.formats import FileModel, Format
from carryover.core.formats.claims import Work
from carryover.transfer.tasks.accuracy import Accuracy

GRID_NAME = "grid.json"
FORMAT: Final = Format("grid of rates", 2)


class GridPoint(FileModel):
    """One pair of base rates, the held-out images it got right, and the seconds it took."""

    base_lr_backbone: PositiveFloat
    base_lr_head: PositiveFloat
    images: PositiveInt
    top1: NonNegativeInt
    seconds: NonNegativeFloat

    @property
    def top1_percent(self) -> float:
        """Share of the held-out images whose first guess is right, in %."""
        return 100.0 * self.top1 / self.images

    @classmethod
    def of(cls, rates: tuple[float, float], found: Accuracy, seconds: float) -> "GridPoint":
        """Note what (backbone, head) base rates came to."""
        return cls(
            base_lr_backbone=rates[0],
            base_lr_head=rates[1],
            images=found.images,
            top1=found.top1,
            seconds=seconds,
        )


class _GridFile(FileModel):
    identity: dict[str, Any] | str
    points: tuple[GridPoint, ...]


def best_point(points: Sequence[GridPoint]) -> GridPoint:
    """Return the point that got most held-out images right; of equals the first."""
    return max(points, key=lambda p: p.top1)


def read_points(path: Path, work: Work) -> list[GridPoint]:
    """Read the points that are done; raises UserError for another grid's file."""
    plain = FORMAT.read(path)
    if plain is None:
        return []
    file = FORMAT.parse(_GridFile, plain, path)
    work.require(path, file.identity, "grid of rates")
    return list(file.points)


def write_points(path: Path, work: Work, points: Sequence[GridPoint]) -> None:
    """Write the points that are done, atomically."""
    file = _GridFile(identity=work.identity.to_json(), points=tuple(points))
    FORMAT.write(path, file.model_dump(mode="json"))
