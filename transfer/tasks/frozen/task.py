"""The shape of every task whose backbone stays as it is: only the test is its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from carryover.core.data.labelled.images import LabeledImages
from carryover.transfer.tasks.base import Run, Task
from carryover.transfer.tasks.frozen.config import FrozenRecipe

if TYPE_CHECKING:
    from carryover.core.backbones.source import Source
    from carryover.transfer.tasks.frozen.backbone import Frozen

F = TypeVar("F", bound=FrozenRecipe)
D = TypeVar("D")


class FrozenDataTask(Task[F, D, "Frozen"]):
    """A task on a frozen backbone, whatever its data are; `prepare` and `test` are left to write."""

    def require(self, config: F, source: "Source") -> None:
        """Raise UserError where the images' size or normalization are not the checkpoint's."""
        require_crops(config, source)

    @contextmanager
    def build(self, run: Run[F, D]) -> "Iterator[Frozen]":
        """Fix the backbone's parameters; its features come from the store."""
        from carryover.transfer.tasks.frozen.backbone import frozen_of

        yield frozen_of(run)


class FrozenTask(FrozenDataTask[F, LabeledImages]):
    """A task on a frozen backbone and labeled images: a recipe with `data` and, if it likes, `labels`."""

    def prepare(self, config: F) -> LabeledImages:
        """Check that the data set is there."""
        stated: Any = config
        return LabeledImages(stated.data, getattr(stated, "labels", None), config.seed)


def require_crops(config: FrozenRecipe, source: "Source") -> None:
    """Raise UserError where the images' size or normalization are not the checkpoint's."""
    from carryover.core.backbones.pixels import require_same_crops

    require_same_crops(config.image, source.metadata, source.path)
