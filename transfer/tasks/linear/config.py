"""Recipe of a linear evaluation (torch-free)."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from carryover.configs import Incidental, Section
from carryover.core.data.labelled.config import ClassifyData
from carryover.core.data.labelled.labels import AllLabels, Labels
from carryover.transfer.tasks.frozen.config import FrozenRecipe
from carryover.transfer.tasks.schedules import Schedule


class SGDHeads(Section):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False


class LARSHeads(Section):
    """LARS on weight and bias, as apex's LARC does it (see `transfer.tasks.linear.model`)."""

    name: Literal["lars"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    trust_coefficient: PositiveFloat = 1e-3


HeadsOptimizer = Annotated[SGDHeads | LARSHeads, Field(discriminator="name")]


class ProtocolMode(Section):
    """Linear classifiers trained on random crops, a new one of every image in every epoch.

    Attributes
    ----------
    base_lrs, lr_per
        Every rate is tried; it is base_lr x batch_size / lr_per.
    lrs
        The scaled rates as the source states them. They decide nothing: when given, they must agree.
    weight_decays, depths
        Every weight decay and every feature depth is tried with every rate; all classifiers share one
        forward pass. Depths are "pooled", or the backbone's stages by name, averaged over the image.
    held_out
        Part of every class on which one of several classifiers is chosen (and which is not trained on).
    refit
        Whether the one that was chosen is trained again, from the start, on all labeled images.
    """

    name: Literal["protocol"] = "protocol"
    optimizer: HeadsOptimizer
    schedule: Schedule
    batch_size: Annotated[int, Field(ge=1)]
    base_lrs: tuple[PositiveFloat, ...] = Field(min_length=1)
    lr_per: PositiveInt = 256
    lrs: tuple[PositiveFloat, ...] | None = None
    weight_decays: tuple[NonNegativeFloat, ...] = Field(default=(0.0,), min_length=1)
    depths: tuple[str, ...] = Field(default=("pooled",), min_length=1)
    held_out: Annotated[float, Field(gt=0, lt=1)] | None = None
    refit: bool = False

    def only(self, index: int) -> "ProtocolMode":
        """Return the protocol of one of its classifiers, numbered by depth, rate and weight decay."""
        rest, decay = divmod(index, len(self.weight_decays))
        depth, rate = divmod(rest, len(self.base_lrs))
        alone = {
            "base_lrs": (self.base_lrs[rate],),
            "weight_decays": (self.weight_decays[decay],),
            "depths": (self.depths[depth],),
        }
        return self.model_copy(update={**alone, "lrs": None, "held_out": None, "refit": False})

    @property
    def scaled_lrs(self) -> tuple[float, ...]:
        """The peak rates at this batch size."""
        return tuple(lr * self.batch_size / self.lr_per for lr in self.base_lrs)

    @property
    def heads(self) -> int:
        """Return how many classifiers are trained."""
        return len(self.base_lrs) * len(self.weight_decays) * len(self.depths)

    @model_validator(mode="after")
    def _rates_agree(self) -> "ProtocolMode":
        if self.lrs is None:
            return self
        if len(self.lrs) != len(self.base_lrs) or any(
            not math.isclose(a, b, rel_tol=1e-3) for a, b in zip(self.lrs, self.scaled_lrs)
        ):
            raise ValueError(
                f"lrs are stated as {list(self.lrs)}, but base_lrs x batch_size / lr_per ="
                f" {list(self.scaled_lrs)}; correct one of them, or set mode.lrs=null"
            )
        return self

    @model_validator(mode="after")
    def _choice_has_its_images(self) -> "ProtocolMode":
        if self.heads > 1 and self.held_out is None:
            raise ValueError(f"{self.heads} classifiers need held_out, on which one of them is chosen")
        if self.heads == 1 and self.held_out is not None:
            raise ValueError("held_out chooses among several classifiers; there is only one")
        return self


class CachedMode(Section):
    """Logistic regression by L-BFGS on features of the central crops, extracted once.

    Up to 2^27 numbers of features (a GiB) it is fitted in float64, where it reaches the tolerance; beyond in
    float32.

    Attributes
    ----------
    costs
        Values of C; the best on the held-out part is used, and all labeled images fitted with it.
    held_out
        Part of every class on which C is chosen.
    scaling
        "standard": every feature has mean 0 and variance 1 over the training images; "none".
    tolerance
        Largest entry of the gradient at which a fit counts as converged.
    """

    name: Literal["cached"]
    costs: tuple[PositiveFloat, ...] = Field(default=(1e-3, 1e-2, 1e-1, 1.0, 10.0), min_length=1)
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    scaling: Literal["standard", "none"] = "standard"
    tolerance: PositiveFloat = 1e-4


class LinearConfig(FrozenRecipe):
    """Linear evaluation: a linear classifier on frozen features.

    Attributes
    ----------
    mode
        ``protocol`` (the papers'), or ``cached`` (much faster; another number, named apart in the record).
    labels
        Which training images keep their labels.
    checkpoint_every
        Epochs between two saved states (protocol mode).
    """

    implementation: ClassVar[str] = "carryover.transfer.tasks.linear.task:Linear"
    # Since 2 cached mode fits small problems in float64, and of equal scores the first class counts.
    version: ClassVar[int] = 2
    trained_since: ClassVar[int | None] = 1

    task: Literal["linear"] = "linear"
    data: ClassifyData
    labels: Labels = AllLabels()
    mode: Annotated[ProtocolMode | CachedMode, Field(discriminator="name")]
    checkpoint_every: Annotated[PositiveInt, Incidental] = 1
    log_every: Annotated[PositiveInt, Incidental] = 10

    def version_of_v1(self, processes: int | None) -> int:
        """Return 2 for the protocol, whose scores of float32 do not tie."""
        return 2 if self.mode.name == "protocol" else 1
