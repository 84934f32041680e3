"""Identity of an evaluation."""

from collections.abc import Mapping
from typing import Any

from carryover.configs import Identity
from carryover.core.backbones.source import Source
from carryover.core.data.digest import recipe_digest
from carryover.core.data.pictures import READING
from carryover.core.data.reading import reading_of_v1
from carryover.core.training.distributed import is_first


def identify(config: Any, source: Source) -> Identity:
    """Return the identity of evaluating `source` by `config` on the data as they are now.

    The data are looked at on the first rank alone, which is the one that compares and writes.
    """
    data = recipe_digest(config) if is_first() else None
    return Identity.of(
        config,
        kind=config.task,
        version=type(config).version,
        seed=config.seed,
        backbone=source.digest,
        data=data,
        reading=READING,
    )


def of_v1(config: Any, processes: int | None) -> dict[str, Any]:
    """Return what the statement of carryover 0.1's evaluation by a recipe says of version and reading.

    `processes` is how many worked together, None where that is not known.
    """
    return {"version": config.version_of_v1(processes), "reading": reading_of_v1(config)}


def processes_of_v1(facts: Mapping[str, Any]) -> int | None:
    """Return how many processes worked together, by the facts of a record of carryover 0.1."""
    devices = facts.get("devices")
    return devices if isinstance(devices, int) else None
