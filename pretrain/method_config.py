"""What each pretraining method may be asked for: one section a method, told apart by `method.name`.

A section states a method's own parameters and nothing else; backbone, projector, data and optimiser are the
recipe's (pretrain/config.py). No torch here: recipes are listed and checked without it.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from configs import Section

Fraction = Annotated[float, Field(ge=0, le=1)]
Views = Literal["single", "two", "multicrop"]


class MomentumTarget(Section):
    """Targets from an exponential moving average of the online network.

    The coefficient goes from `start` to `end` on a cosine over the whole training (BYOL: 0.996 to 1);
    the two are equal for a constant one (MoCo, SiMo: 0.999).
    """

    name: Literal["momentum"] = "momentum"
    start: Fraction = 0.996
    end: Fraction = 1.0

    @model_validator(mode="after")
    def _rises(self) -> "MomentumTarget":
        if self.end < self.start:
            raise ValueError(f"end {self.end} is below start {self.start}: the momentum never falls")
        return self


class StopGradientTarget(Section):
    """Targets from the online network itself, without a gradient (SimSiam)."""

    name: Literal["stop_gradient"] = "stop_gradient"


Target = Annotated[MomentumTarget | StopGradientTarget, Field(discriminator="name")]


class MethodSection(Section):
    """What every method's section says about the recipe around it.

    Attributes
    ----------
    views
        The kinds of augmentation the method can use (`augment.views`).
    takes_cutmix
        Whether the method says what a mixed image's target is.
    wants_projector, wants_labels, trains
        Whether a projection head, labels, and any training at all belong to the method.
    """

    views: ClassVar[tuple[Views, ...]] = ("two",)
    takes_cutmix: ClassVar[bool] = False
    wants_projector: ClassVar[bool] = True
    wants_labels: ClassVar[bool] = False
    trains: ClassVar[bool] = True


class UniGradConfig(MethodSection):
    """UniGrad (Tao et al. 2022, Eq. 14 and 15, Algorithm 6).

    Attributes
    ----------
    lam
        Balance factor lambda of the negative gradient.
    rho
        Momentum of the correlation matrix F.
    correlation_source
        Which embeddings F is formed from: ``momentum``, the target branch's, as in the authors' public
        code; ``online``, as in the paper's Algorithm 6 (with a momentum target: last row of Table 3).
    """

    views: ClassVar[tuple[Views, ...]] = ("two", "multicrop")
    takes_cutmix: ClassVar[bool] = True

    name: Literal["unigrad"]
    target: Target = MomentumTarget()
    lam: NonNegativeFloat = 100.0
    rho: Annotated[float, Field(ge=0, lt=1)] = 0.99
    correlation_source: Literal["momentum", "online"] = "momentum"

    @model_validator(mode="after")
    def _source_exists(self) -> "UniGradConfig":
        if self.correlation_source == "momentum" and self.target.name != "momentum":
            raise ValueError(
                f"correlation_source: momentum needs target.name: momentum, not {self.target.name}"
                " (use correlation_source: online)"
            )
        return self


class SiMoConfig(MethodSection):
    """SiMo (Zhu et al. 2020, section 3): MoCo v2 without a queue, under the EqCo margin (Eq. 5).

    Attributes
    ----------
    negatives
        K: negative keys of each query, drawn at random from the momentum keys of the current global batch
        without the query's own.
    alpha
        The number of negatives whose loss the margin m = tau log(alpha / K) imitates.
    tau
        Temperature.
    """

    name: Literal["simo"]
    target: Target = MomentumTarget(start=0.999, end=0.999)
    negatives: PositiveInt = 256
    alpha: PositiveFloat = 256.0
    tau: PositiveFloat = 0.2


class SqrtKLConfig(MethodSection):
    """SqrtKL (Cao and Wu 2023): single-branch instance discrimination over a bank of all images.

    Attributes
    ----------
    lam
        Weight lambda of the SqrtKL loss (Eq. 13); 0 leaves the cross-entropy alone.
    tau
        Temperature of Eq. 1; the paper keeps NPID's head and states none, so NPID's 0.07.
    bank_momentum
        m of Eq. 3 and 6.
    feature_calibrate
        Start the bank from one forward pass of the untrained network instead of random directions.
    grad_update
        Update the bank along the corrected direction of Eq. 5 instead of the image's own embedding (Eq. 3).
    """

    views: ClassVar[tuple[Views, ...]] = ("single",)

    name: Literal["sqrtkl"]
    lam: NonNegativeFloat = 20.0
    tau: PositiveFloat = 0.07
    bank_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    feature_calibrate: bool = True
    grad_update: bool = True


class SupervisedConfig(MethodSection):
    """Supervised pretraining by cross-entropy: the baseline that sees labels."""

    views: ClassVar[tuple[Views, ...]] = ("single",)
    wants_projector: ClassVar[bool] = False
    wants_labels: ClassVar[bool] = True

    name: Literal["supervised"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class RandomConfig(MethodSection):
    """No pretraining: the seed's initialisation, exported as it is. The baseline that sees nothing."""

    views: ClassVar[tuple[Views, ...]] = ("single", "two", "multicrop")
    wants_projector: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    name: Literal["random"]


MethodConfig = Annotated[
    UniGradConfig | SiMoConfig | SqrtKLConfig | SupervisedConfig | RandomConfig,
    Field(discriminator="name"),
]
