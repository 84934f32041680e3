"""Steps of a training that counts iterations: draws of images, loaded ahead."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from carryover.core.data.workers import loading_processes, start_method
from carryover.core.training.interrupt import outlive_signals


@dataclass(frozen=True)
class Draw:
    """One image of one step; its augmentation is decided by (seed, iteration, position) alone."""

    index: int
    iteration: int
    position: int


def step_loader(
    dataset: Dataset[Any],
    steps: Iterable[list[Draw]],
    workers: int,
    collate: Callable[[list[Any]], Any] = list,
) -> DataLoader[Any]:
    """Load whole steps ahead in `workers` processes; 0 loads in this one."""
    processes = loading_processes(workers)
    return DataLoader(
        dataset,
        batch_sampler=steps,
        num_workers=processes,
        multiprocessing_context=start_method(processes),
        worker_init_fn=outlive_signals,
        collate_fn=collate,
        persistent_workers=False,
    )
