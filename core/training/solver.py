"""Base of the solvers of detection and segmentation recipes: steps scale with the batch."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from carryover.configs import Section


class ScaledSolver(Section):
    """SGD or AdamW over iterations; all rates and iteration numbers are those of `reference_ims_per_batch`.

    With `ims_per_batch` images a step instead, the rates are multiplied and every iteration number is divided
    by ims_per_batch / reference_ims_per_batch, so that the same number of images is seen.

    Attributes
    ----------
    base_lr, max_iter
        Peak rate and length, at the reference batch.
    lr
        The scaled rate as the source states it. It decides nothing: when given, it must agree.
    algorithm, betas
        "adamw" is Loshchilov and Hutter's, with these betas (and no momentum); its rate scales linearly, too.
    layer_decay
        The backbone's rate falls by this factor with every layer below the heads (`core.backbones.layers`);
        1: one rate for all.
    precision
        ``bf16`` autocasts the network; losses and the optimizer stay in float32.
    """

    ims_per_batch: PositiveInt = 16
    reference_ims_per_batch: PositiveInt = 16
    base_lr: PositiveFloat
    lr: PositiveFloat | None = None
    max_iter: PositiveInt
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    algorithm: Literal["sgd", "adamw"] = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def scale(self) -> float:
        """Return the ratio of the batch size to the reference batch size."""
        return self.ims_per_batch / self.reference_ims_per_batch

    @property
    def layered(self) -> bool:
        """Return whether parameters are grouped by the depth that they lie at, or AdamW's way."""
        return self.algorithm == "adamw" or self.layer_decay != 1

    @property
    def peak_lr(self) -> float:
        """The highest learning rate, at this batch."""
        return self.base_lr * self.scale

    @property
    def iterations(self) -> int:
        """The number of steps at this batch."""
        return self.scaled(self.max_iter)

    def scaled(self, iterations: int) -> int:
        """Return a number of iterations, given for the reference batch, at this batch."""
        return max(1, round(iterations / self.scale))

    def describe(self) -> str:
        """Return the schedule in words, with what the batch made of the stated rate and length."""
        said = f"{self.ims_per_batch} images a step, rate {self.peak_lr:g}, {self.iterations:,} iterations"
        if self.ims_per_batch == self.reference_ims_per_batch:
            return said
        return (
            f"{said} (solver.base_lr {self.base_lr:g} and solver.max_iter {self.max_iter:,} are stated for"
            f" {self.reference_ims_per_batch} images a step, and scale with solver.ims_per_batch by"
            " themselves)"
        )

    @model_validator(mode="after")
    def _rates_agree(self) -> Self:
        if self.lr is not None and not math.isclose(self.lr, self.peak_lr, rel_tol=1e-3):
            raise ValueError(
                f"lr is stated as {self.lr:g}, but base_lr x ims_per_batch / reference_ims_per_batch ="
                f" {self.peak_lr:g}; correct one of them, or set solver.lr=null"
            )
        return self
