"""The online signals of a pretraining recipe."""

from carryover.core.data.prepared import Dataset, build_dataset
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.online.signals import Signals


def signals_of(config: PretrainConfig, training: Dataset) -> Signals | None:
    """Choose the images of a recipe's online signals; None where it asks for none.

    Raises UserError where the held-out split is missing or has other classes.
    """
    if config.online is None:
        return None
    held_out = None
    if config.online.split is not None:
        changes = {"split": config.online.split, "subset": None}
        held_out = build_dataset(config.data.model_copy(update=changes))
    return Signals.of(config.online, training, held_out, config.augment)


def steps_between_looks(config: PretrainConfig, processes: int) -> int | None:
    """Return the steps between two looks, the same for every process; None where there are none."""
    if config.online is None:
        return None
    side = config.augment.view.size
    views = sum((view.size / side) ** 2 for view in config.augment.view_list)
    return config.online.steps_between(config.batch_size / processes * views)
