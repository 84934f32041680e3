"""Schedules counted in epochs: what a recipe says of one, and the factor on the rate that comes of it."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from carryover.configs import Section
from carryover.core.training.schedules import check_milestones, warmup_cosine, warmup_multistep


class CosineSchedule(Section):
    """Half a cosine from the peak rate to `end` of it; `per` says whether it changes every step or epoch.

    `rise` epochs of a linear warm-up from zero come first, which changes the rate every step.
    """

    name: Literal["cosine"] = "cosine"
    epochs: PositiveInt
    per: Literal["step", "epoch"] = "step"
    rise: NonNegativeInt = 0
    end: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _rise_fits(self) -> "CosineSchedule":
        if self.rise >= self.epochs:
            raise ValueError(f"rise: {self.rise} epochs of warm-up leave nothing of {self.epochs}")
        return self


class MultiStepSchedule(Section):
    """The rate is multiplied by `gamma` at every one of the `milestones` (epochs)."""

    name: Literal["multistep"]
    epochs: PositiveInt
    milestones: tuple[PositiveInt, ...] = Field(min_length=1)
    gamma: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _milestones_fit(self) -> "MultiStepSchedule":
        check_milestones(self.milestones, self.epochs)
        return self


Schedule = Annotated[CosineSchedule | MultiStepSchedule, Field(discriminator="name")]


def rate_factor(schedule: Schedule, step: int, epoch_steps: int) -> float:
    """Return the factor on both peak rates at `step` (0-based), with `epoch_steps` steps an epoch."""
    if isinstance(schedule, CosineSchedule):
        if step < schedule.rise * epoch_steps:
            return step / (schedule.rise * epoch_steps)
        if schedule.per == "step":
            epochs, rise = schedule.epochs * epoch_steps, schedule.rise * epoch_steps
            return warmup_cosine(step, epochs, rise, schedule.end)
        return warmup_cosine(step // epoch_steps, schedule.epochs, schedule.rise, schedule.end)
    return warmup_multistep(step // epoch_steps, schedule.milestones, schedule.gamma)
