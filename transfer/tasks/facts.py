"""Facts in the records of all tasks on labeled images (torch-free)."""

from typing import Any, Self

from carryover.core.data.labelled.images import LabeledImages
from carryover.transfer.results.record import Facts
from carryover.transfer.tasks.base import Run


class LabeledFacts(Facts):
    """Labels that were used, and the number of processes.

    Attributes
    ----------
    labels
        The choice in words.
    images_per_class
        Fewest and most labeled images of a class.
    """

    labels: str
    images_per_class: tuple[int, int]
    classes: int
    processes: int

    @classmethod
    def of(cls, run: Run[Any, LabeledImages], **more: Any) -> Self:
        """Return the facts of a run; `more` are the fields that a subclass adds."""
        counts = run.data.train.counts.values()
        return cls(
            labels=run.data.train.what,
            images_per_class=(min(counts), max(counts)),
            classes=len(run.data.classes),
            processes=run.ranks.world,
            **more,
        )
