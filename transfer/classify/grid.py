"""A grid of rates on file: what every point came to on the held-out labelled images."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from configs import Section, UserError
from transfer.classify.classifier import Accuracy
from transfer.outputs import write_text

GRID_NAME = "grid.json"


class GridPoint(Section):
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


class _GridFile(Section):
    identity: str
    points: tuple[GridPoint, ...]


def best_point(points: Sequence[GridPoint]) -> GridPoint:
    """Return the point that got most held-out images right; of equals the first."""
    return max(points, key=lambda p: p.top1)


def read_points(path: Path, identity: str) -> list[GridPoint]:
    """Read the points that are done; raises UserError for another grid's file."""
    if not path.exists():
        return []
    try:
        file = _GridFile.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not the points of a grid ({error})") from None
    if file.identity != identity:
        raise UserError(f"{path}: holds another recipe's, seed's, checkpoint's or subset's grid; remove it")
    return list(file.points)


def write_points(path: Path, identity: str, points: Sequence[GridPoint]) -> None:
    """Write the points that are done, atomically."""
    file = _GridFile(identity=identity, points=tuple(points))
    write_text(path, file.model_dump_json(indent=1) + "\n")
