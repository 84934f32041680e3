"""Recipe of a t-SNE (torch-free)."""

from typing import ClassVar, Literal

from pydantic import NonNegativeInt, PositiveFloat

from carryover.core.data.labelled.config import ClassifyData
from carryover.transfer.tasks.frozen.config import FrozenRecipe


class TsneConfig(FrozenRecipe):
    """A t-SNE picture of test features (sqrtkl Figure 6).

    Attributes
    ----------
    images
        Test images shown, drawn by the seed, equally many of every class; 0: all.
    perplexity
        scikit-learn's.
    """

    implementation: ClassVar[str] = "carryover.transfer.tasks.tsne.task:Tsne"

    task: Literal["tsne"] = "tsne"
    data: ClassifyData
    images: NonNegativeInt = 5000
    perplexity: PositiveFloat = 30.0
