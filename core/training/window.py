"""Measurements between two lines of metrics.jsonl, without waiting for the device."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from carryover.configs import WorkError
from carryover.core.training.distributed import mean_over_ranks

STOPPED = "stopped, and the last good checkpoint is kept"


class Window:
    """Collects the steps of one line: numbers on the device, seconds on the host.

    An open window is part of a training's state, so that a resumed training's log is that of one which never
    stopped.
    """

    def __init__(self, images_per_step: int, cause: str = STOPPED) -> None:
        self._images_per_step, self._cause = images_per_step, cause
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        # Steps of this process: those of an earlier one tell nothing of the pace.
        self._timed = 0
        self._waited = 0.0
        self._opened = self._ready = time.monotonic()

    def batch_arrived(self) -> None:
        """Count the time since the end of the last step as waiting for data."""
        self._waited += time.monotonic() - self._ready

    def step_taken(self, numbers: Mapping[str, Tensor]) -> None:
        """Note a step's numbers (scalars on the device, "loss" among them); nothing is copied to the host."""
        self._names = ["loss", *sorted(numbers.keys() - {"loss"})]
        self._rows.append(torch.stack([numbers[name].detach().float() for name in self._names]))
        self._timed += 1
        self._ready = time.monotonic()

    def require_finite(self, step: int) -> None:
        """Raise WorkError on every rank, naming the first step whose loss is not finite; a collective call.

        `step` is the number of steps taken so far.
        """
        if self._rows:
            self._checked(mean_over_ranks(torch.stack(self._rows)).cpu(), step)

    def close(self, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """Return the means over the window's steps and over the ranks, and the pace; a collective call.

        Raises WorkError as `require_finite` does.
        """
        table = self._checked(mean_over_ranks(torch.stack(self._rows)).cpu(), step)
        seconds = max(time.monotonic() - self._opened, 1e-9)
        means = dict(zip(self._names, table.mean(0).tolist(), strict=True))
        per_second = self._images_per_step * self._timed / seconds
        return means, {"images_per_second": per_second, "loader_wait": self._waited / seconds}

    def state(self) -> dict[str, Any]:
        """Return the window's steps as plain numbers."""
        rows = torch.stack(self._rows).tolist() if self._rows else []
        return {"names": list(self._names), "rows": rows}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take up the open window of a training's state, of this release or of version 1.

        Its numbers go to the device that the steps to come leave theirs on.
        """
        there = state.get("window") or {}
        if "rows" in there:
            self._names = list(there["names"])
            self._rows = [torch.tensor(row, device=device) for row in there["rows"]]
        elif there and state.get("window_count"):
            # Version 1 kept sums.
            count = state["window_count"]
            self._names = ["loss", *sorted(there.keys() - {"loss"})]
            means = torch.tensor([there[name] / count for name in self._names], device=device)
            self._rows = [means] * count

    def _checked(self, table: Tensor, step: int) -> Tensor:
        bad = (~torch.isfinite(table[:, 0])).nonzero()
        if len(bad):
            first = int(bad[0])
            loss, at = table[first, 0].item(), step - len(table) + first + 1
            raise WorkError(f"the loss is {loss} at step {at}; {self._cause}")
        return table


def averaged(numbers: Mapping[str, Tensor]) -> dict[str, float]:
    """Return scalar tensors, the same ones on every rank, as their means over the ranks."""
    if not numbers:
        return {}
    values = mean_over_ranks(torch.stack([value.float() for value in numbers.values()]))
    return dict(zip(numbers, values.tolist(), strict=True))
