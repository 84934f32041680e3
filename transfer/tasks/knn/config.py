"""Recipe of a k-NN evaluation (torch-free)."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from carryover.core.data.labelled.config import ClassifyData
from carryover.core.data.labelled.labels import AllLabels, Labels
from carryover.transfer.tasks.frozen.config import FrozenRecipe


class KnnConfig(FrozenRecipe):
    """Weighted k-nearest-neighbor classification (Wu et al. 2018).

    Attributes
    ----------
    labels
        Which training images are neighbors.
    k, temperatures
        Every pair of them is reported; all come from one search of the largest k.
    """

    implementation: ClassVar[str] = "carryover.transfer.tasks.knn.task:Knn"
    # Since 2 of equal similarities the first image, and of equal votes the first class goes first.
    version: ClassVar[int] = 2

    task: Literal["knn"] = "knn"
    data: ClassifyData
    labels: Labels = AllLabels()
    k: tuple[PositiveInt, ...] = Field(default=(20, 200), min_length=1)
    temperatures: tuple[PositiveFloat, ...] = Field(default=(0.07, 0.1), min_length=1)

    def version_of_v1(self, processes: int | None) -> int:
        """Return 2: features tie only where a picture is there twice."""
        return 2
