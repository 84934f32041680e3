"""What decides an evaluation's numbers."""

from typing import Any

from carryover.configs import Identity
from carryover.core.backbones.source import Source
from carryover.core.data.digest import recipe_digest
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
    )
