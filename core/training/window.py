"""What the loop measures between two lines of metrics.jsonl, without waiting for the device in between."""

import time

import torch
from torch import Tensor

from carryover.configs import WorkError
from carryover.core.training.distributed import mean_over_ranks


class Window:
    """Collects the steps of one line: losses on the device, seconds on the host."""

    def __init__(self, images_per_step: int) -> None:
        self._images_per_step = images_per_step
        self._losses: list[Tensor] = []
        self._numbers: list[dict[str, Tensor]] = []
        self._waited = 0.0
        self._opened = self._ready = time.monotonic()

    def batch_arrived(self) -> None:
        """Count the time since the end of the last step as waiting for data."""
        self._waited += time.monotonic() - self._ready

    def step_taken(self, loss: Tensor, numbers: dict[str, Tensor]) -> None:
        """Note a step's loss and numbers (scalars on the device); nothing is copied to the host."""
        self._losses.append(loss.detach())
        self._numbers.append(numbers)
        self._ready = time.monotonic()

    def close(self, step: int) -> dict[str, float]:
        """Return the means over the window's steps and over the ranks.

        `step` is the number of steps taken so far. A collective call. Raises WorkError on every rank, naming
        the first step whose loss is not finite.
        """
        names = sorted(self._numbers[0])
        rows = [
            torch.stack([loss, *(n[k].float() for k in names)])
            for loss, n in zip(self._losses, self._numbers)
        ]
        table = mean_over_ranks(torch.stack(rows)).cpu()
        bad = (~torch.isfinite(table[:, 0])).nonzero()
        if len(bad):
            first = int(bad[0])
            raise WorkError(
                f"the loss is {table[first, 0].item()} at step {step - len(table) + first + 1};"
                " stopped, and the last good checkpoint is kept"
            )
        seconds = max(time.monotonic() - self._opened, 1e-9)
        means = dict(zip(["loss", *names], table.mean(0).tolist()))
        means["images_per_second"] = self._images_per_step * len(table) / seconds
        means["loader_wait"] = self._waited / seconds
        return means


def averaged(numbers: dict[str, Tensor]) -> dict[str, float]:
    """Return scalar tensors, the same ones on every rank, as their means over the ranks."""
    if not numbers:
        return {}
    values = mean_over_ranks(torch.stack([value.float() for value in numbers.values()]))
    return dict(zip(numbers, values.tolist()))
