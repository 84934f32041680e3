"""What the records of all tasks on labelled images tell (torch-free)."""

from typing import TYPE_CHECKING, Any

from carryover.transfer.results.record import Facts

if TYPE_CHECKING:
    from carryover.core.data.labelled.images import LabelledImages
    from carryover.core.training.distributed import Ranks


class LabelledFacts(Facts):
    """Which labels were used, and by how many processes.

    Attributes
    ----------
    labels
        The choice in words.
    images_per_class
        Fewest and most labelled images of a class.
    """

    labels: str
    images_per_class: tuple[int, int]
    classes: int
    processes: int


def labelled(data: "LabelledImages", ranks: "Ranks") -> dict[str, Any]:
    """Return the fields of `LabelledFacts`, for the facts of a task that derive from it."""
    counts = data.train.counts.values()
    return {
        "labels": data.train.what,
        "images_per_class": (min(counts), max(counts)),
        "classes": len(data.classes),
        "processes": ranks.world,
    }
