"""Interface between a library and a task that trains a whole network."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from carryover.core.training.distributed import Ranks
from carryover.core.training.iterations import Trainable
from carryover.transfer.results.record import Facts
from carryover.transfer.tasks.base import Run

S = TypeVar("S")
M = TypeVar("M")


class Model(Trainable[S], Protocol[S]):
    """A network of some library around the carried backbone, on the ranks' device.

    Attributes
    ----------
    carried
        How many backbone tensors of the network were found equal to the checkpoint's.
    facts, artifacts
        What the record should say besides what it always says: fields of the task's `Facts`, files by name.
    """

    @property
    def carried(self) -> int: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    @property
    def artifacts(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Backend(Generic[M]):
    """A library that networks are built, trained and tested with.

    Attributes
    ----------
    name, version
        For the record; a version of None is looked up among the installed distributions.
    require
        Raises UserError for a recipe that the library cannot train with so many processes.
    build
        Builds a network around a checkpoint's backbone, verifies that it was loaded, and puts away what it
        needed when the run is over.
    """

    name: str
    version: str | None
    require: Callable[[Any, Ranks], None]
    build: Callable[[Run[Any, Any]], AbstractContextManager[M]]


class TrainedFacts(Facts):
    """Facts in the record of a whole network's training.

    Attributes
    ----------
    carried_tensors
        Backbone tensors found equal to the checkpoint's.
    lr
        Peak rate at this batch.
    norm
        Normalization of the backbone, in the library's words.
    defects_forgiven
        Defects of the data set that the recipe forgave.
    turned_images
        Pictures that carry an EXIF orientation; None where none does.
    """

    carried_tensors: int
    iterations: int
    batch_size: int
    lr: float
    norm: str
    defects_forgiven: int
    processes: int
    turned_images: int | None = None


def trained(run: Run[Any, Any], model: Model[Any]) -> dict[str, Any]:
    """Return the fields of `TrainedFacts`, and those that the library adds."""
    config, splits = run.config, (run.data.train, run.data.test)
    return {
        "carried_tensors": model.carried,
        "iterations": config.solver.iterations,
        "batch_size": config.solver.ims_per_batch,
        "lr": config.solver.peak_lr,
        "norm": config.model.norm,
        "defects_forgiven": len(run.data.defects),
        "processes": run.ranks.world,
        "turned_images": sum(i.turned for split in splits for i in split.images) or None,
        **model.facts,
    }
