"""The labeled images of a recipe: checked at once, opened and chosen when they are first needed."""

from functools import cached_property
from typing import TYPE_CHECKING

from carryover.core.data.labelled.config import ClassifyData, check_data
from carryover.core.data.labelled.labels import AllLabels, Labels

if TYPE_CHECKING:
    from carryover.core.data.datasets import Dataset
    from carryover.core.data.labelled.splits import LabeledSubset, Splits
    from carryover.core.data.labelled.subsets import Indices


class LabeledImages:
    """Both splits of a labeled data set, and the training images whose labels are used.

    Making one imports no torch. Raises UserError where a folder or list is not there; opening the splits and
    choosing labels raise what `core.data.labelled.splits` says.
    """

    def __init__(self, data: ClassifyData, labels: Labels | None = None, seed: int = 0) -> None:
        check_data(data)
        self._data, self._labels, self._seed = data, labels or AllLabels(), seed

    @cached_property
    def splits(self) -> "Splits":
        """Both splits as they lie on disk."""
        from carryover.core.data.labelled.splits import open_splits

        return open_splits(self._data)

    @cached_property
    def train(self) -> "LabeledSubset":
        """The training images whose labels are used."""
        from carryover.core.data.labelled.splits import choose_labeled

        return choose_labeled(self._labels, self.splits, self._seed)

    def look(self) -> None:
        """Raise whatever opening the splits and choosing labels would, without torch and without decoding."""
        from carryover.core.data.labelled.splits import look_at_splits

        look_at_splits(self._data, self._labels, self._seed)

    @property
    def test(self) -> "Dataset":
        """The test images."""
        return self.splits.test

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        return self.splits.classes

    @property
    def label_fraction(self) -> float:
        """The share of the training split whose labels are used."""
        return len(self.train.indices) / len(self.splits.train)

    @cached_property
    def selection(self) -> "Dataset | None":
        """The images of the recipe's split to choose on; None where it names none."""
        from carryover.core.data.labelled.splits import open_selection

        return open_selection(self._data, self.splits)

    def to_choose(self, fraction: float) -> "tuple[Indices, Dataset]":
        """Return the labeled images to fit on, and the images to choose on.

        Those are the recipe's split for it, where there is one; else that part of every class.
        """
        if self.selection is not None:
            return self.train.positions, self.selection
        fit, held = self.hold_out(fraction)
        return fit, self.train.images.take(held)

    def hold_out(self, fraction: float) -> "tuple[Indices, Indices]":
        """Split the labeled images into a part to fit on and a part to choose on, class by class."""
        from carryover.core.data.labelled.subsets import hold_out

        return hold_out(self.train.labels, self.classes, self.train.positions, fraction, self._seed)
