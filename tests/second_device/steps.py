"""Trainings on the device, and what each of their steps costs."""

import pytest

import carryover.core.training.loop
from tests.second_device.counting import Costs, forget_peak, snapshot


class StepCosts:
    """Collects what each step of a training costs: from the end of the step before to its own end.

    What the loop does after a step (reports, saves) counts for the step that follows.
    """

    def __init__(self) -> None:
        self.of_step: dict[int, Costs] = {}
        self._before: Costs | None = None

    def __call__(self, step: int) -> None:
        now = snapshot()
        if self._before is not None:
            self.of_step[step] = now - self._before
        forget_peak()
        self._before = snapshot()


def count_steps(monkeypatch: pytest.MonkeyPatch) -> StepCosts:
    """Have every step of every training counted from now on."""
    costs = StepCosts()
    monkeypatch.setattr(carryover.core.training.loop, "after_step", costs)
    return costs
