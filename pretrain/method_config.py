"""Options of each pretraining method: one section per method, selected by `method.name`.

A section states a method's own parameters and nothing else; backbone, projector, data and optimizer are the
recipe's (pretrain/config.py). No torch here: recipes are listed and checked without it.
"""

from typing import Annotated, ClassVar, Literal, TypeVar, get_args

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from carryover.configs import Incidental, Section, UserError
from carryover.configs.registry import Registry
from carryover.configs.tagged import Tagged

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


class WeightSharingTarget(Section):
    """Targets from the online network itself, with their gradient (SimCLR, Barlow Twins, VICReg)."""

    name: Literal["weight_sharing"] = "weight_sharing"


DetachedTarget = Annotated[MomentumTarget | StopGradientTarget, Field(discriminator="name")]
Target = Annotated[MomentumTarget | StopGradientTarget | WeightSharingTarget, Field(discriminator="name")]


class PredictorConfig(Section):
    """The learnt head on top of the online projector (BYOL, SimSiam, MSBReg); it maps back to its width.

    `constant_lr` keeps its learning rate at the peak throughout (SimSiam's code; UniGrad 5.1 on predictors).
    With `output_norm` the last layer is normalized as well, without weight and bias (MoCo v3's ViTs).
    """

    depth: Annotated[int, Field(ge=1, le=5)] = 2
    hidden: PositiveInt = 4096
    norm: Literal["batch", "layer", "none"] = "batch"
    constant_lr: bool = False
    output_norm: bool = False

    @model_validator(mode="after")
    def _output_norm_is_one(self) -> "PredictorConfig":
        if self.output_norm and self.norm == "none":
            raise ValueError("output_norm: true needs a norm: batch or layer")
        return self


class MethodSection(Section):
    """Requirements of a method's section on the rest of the recipe.

    Attributes
    ----------
    views
        The kinds of augmentation the method can use (`augment.views`).
    takes_cutmix
        Whether the method says what a mixed image's target is.
    wants_projector, wants_labels, trains
        Whether a projection head, labels, and any training at all belong to the method.
    implementation
        The `pretrain.methods.base.Method` that carries it out, as ``module:attribute``; imported when a
        pretraining begins.
    version
        Raised whenever the method would train other weights from the same recipe and data; part of the
        identity of every pretraining.
    """

    implementation: ClassVar[str] = ""
    version: ClassVar[int] = 1
    views: ClassVar[tuple[Views, ...]] = ("two",)
    takes_cutmix: ClassVar[bool] = False
    wants_projector: ClassVar[bool] = True
    wants_labels: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    name: str


Sourced = TypeVar("Sourced", "UniGradConfig", "DirectPredConfig")


def _with_a_source(method: Sourced) -> Sourced:
    if method.correlation_source == "momentum" and method.target.name != "momentum":
        raise ValueError(
            f"correlation_source: momentum needs target.name: momentum, not {method.target.name}"
            " (use correlation_source: online)"
        )
    return method


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

    implementation: ClassVar[str] = "carryover.pretrain.methods.unigrad:UniGrad"

    name: Literal["unigrad"]
    target: DetachedTarget = MomentumTarget()
    lam: NonNegativeFloat = 100.0
    rho: Annotated[float, Field(ge=0, lt=1)] = 0.99
    correlation_source: Literal["momentum", "online"] = "momentum"

    @model_validator(mode="after")
    def _source_exists(self) -> "UniGradConfig":
        return _with_a_source(self)


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
    shuffle_bn
        Keys are batch-normalized among other images than their queries (Table 7; with sync_bn: false).
    """

    implementation: ClassVar[str] = "carryover.pretrain.methods.contrastive:SiMo"

    name: Literal["simo"]
    target: MomentumTarget = MomentumTarget(start=0.999, end=0.999)
    negatives: PositiveInt = 255
    alpha: PositiveFloat = 256.0
    tau: PositiveFloat = 0.2
    shuffle_bn: bool = False


class MoCoConfig(MethodSection):
    """MoCo v1/v2 (He et al. 2020): momentum keys of earlier batches in a queue, as negatives.

    Attributes
    ----------
    queue
        K, the queue's length and the number of negatives. Below the batch size it holds K random keys of the
        previous batch (EqCo 2.3).
    alpha
        The EqCo margin's constant; None: no margin.
    symmetric
        Both views are queries and both are keys (UniGrad Table 2 a); otherwise the first is the query.
    shuffle_bn
        Keys are batch-normalized among other images than their queries (with sync_bn: false).
    """

    implementation: ClassVar[str] = "carryover.pretrain.methods.contrastive:MoCo"

    name: Literal["moco"]
    target: MomentumTarget = MomentumTarget(start=0.999, end=0.999)
    queue: PositiveInt = 65536
    alpha: PositiveFloat | None = None
    tau: PositiveFloat = 0.2
    symmetric: bool = False
    shuffle_bn: bool = False


class MoCoV3Config(MethodSection):
    """MoCo v3 (Chen et al. 2021, Algorithm 1): a predictor's outputs against the momentum keys of the batch.

    `tau` is the temperature; the loss of both directions is multiplied by 2 tau.
    """

    implementation: ClassVar[str] = "carryover.pretrain.methods.contrastive:MoCoV3"

    name: Literal["moco_v3"]
    target: MomentumTarget = MomentumTarget(start=0.99, end=1.0)
    predictor: PredictorConfig = PredictorConfig(output_norm=True)
    tau: PositiveFloat = 0.2


class SimCLRConfig(MethodSection):
    """SimCLR (Chen et al. 2020; UniGrad Eqs. 19 to 21): the batch's other images as negatives.

    Attributes
    ----------
    negatives
        K, negative views drawn at random for each query; None: all of the global batch (2B - 2).
    alpha
        The EqCo margin's constant; None: no margin.
    negatives_from
        ``target``: the target branch's views; ``online``: the online branch's, without a gradient, so that
        the target branch gives the positive only (UniGrad Table 3, last row).
    """

    implementation: ClassVar[str] = "carryover.pretrain.methods.contrastive:SimCLR"

    name: Literal["simclr"]
    target: Target = WeightSharingTarget()
    negatives: PositiveInt | None = None
    alpha: PositiveFloat | None = None
    tau: PositiveFloat = 0.2
    negatives_from: Literal["target", "online"] = "target"


class BYOLConfig(MethodSection):
    """BYOL (Grill et al. 2020): a learnt predictor on a momentum target (UniGrad Eq. 5, Table 2 c)."""

    implementation: ClassVar[str] = "carryover.pretrain.methods.asymmetric:BYOL"

    name: Literal["byol"]
    target: DetachedTarget = MomentumTarget()
    predictor: PredictorConfig = PredictorConfig()


class SimSiamConfig(MethodSection):
    """SimSiam (Chen and He 2021): a learnt bottleneck predictor on a stop-gradient target."""

    implementation: ClassVar[str] = "carryover.pretrain.methods.asymmetric:BYOL"

    name: Literal["simsiam"]
    target: DetachedTarget = StopGradientTarget()
    predictor: PredictorConfig = PredictorConfig(hidden=512, constant_lr=True)


class DirectPredConfig(MethodSection):
    """DirectPred (Tian et al. 2021; UniGrad Eqs. 6, 22 to 28): the predictor computed from F.

    Attributes
    ----------
    form
        ``loss``: Eq. 22 by automatic differentiation; ``gradient``: Eq. 26; ``without_root``: Eq. 27
        (Table 2 d); ``simplified``: Eq. 28.
    eps
        Boost of the small eigenvalues, relative to the largest.
    """

    implementation: ClassVar[str] = "carryover.pretrain.methods.asymmetric:DirectPred"

    name: Literal["directpred"]
    target: DetachedTarget = MomentumTarget()
    form: Literal["loss", "gradient", "without_root", "simplified"] = "without_root"
    eps: PositiveFloat = 0.3
    rho: Annotated[float, Field(ge=0, lt=1)] = 0.99
    correlation_source: Literal["momentum", "online"] = "momentum"

    @model_validator(mode="after")
    def _source_exists(self) -> "DirectPredConfig":
        return _with_a_source(self)


class BarlowTwinsConfig(MethodSection):
    """Barlow Twins (Zbontar et al. 2021; UniGrad Eqs. 8, 9, 29 to 32, Table 2 f to h).

    Attributes
    ----------
    normalisation
        Of the embeddings before their cross-correlation: ``batch`` (BN without parameters) or ``l2``.
    form
        ``loss``: Eq. 8 by automatic differentiation (Table 2 f). ``simplified``: the gradient with A
        replaced by `a` times the identity (g with ``batch``, h with ``l2``).
    """

    implementation: ClassVar[str] = "carryover.pretrain.methods.decorrelation:BarlowTwins"

    name: Literal["barlow_twins"]
    target: Target = WeightSharingTarget()
    normalisation: Literal["batch", "l2"] = "batch"
    form: Literal["loss", "simplified"] = "loss"
    lam: NonNegativeFloat = 5e-3
    a: PositiveFloat = 1.0


class VICRegConfig(MethodSection):
    """VICReg (Bardes et al. 2022; UniGrad Eqs. 10 to 12, 33 to 39, Table 2 i and j).

    Attributes
    ----------
    form
        ``loss``: Eq. 10 on embeddings as they are, weighed by `lam1`, `lam2` and `gamma`. ``simplified``:
        Eq. 12 on l2-normalized embeddings, weighed by `lam`.
    negatives_from
        Which branch gives the negative gradient of the simplified form (UniGrad Table 3).
    """

    implementation: ClassVar[str] = "carryover.pretrain.methods.decorrelation:VICReg"

    name: Literal["vicreg"]
    target: Target = WeightSharingTarget()
    form: Literal["loss", "simplified"] = "loss"
    lam1: NonNegativeFloat = 163.84
    lam2: NonNegativeFloat = 2048.0
    gamma: PositiveFloat = 1.0
    lam: NonNegativeFloat = 25.0
    negatives_from: Literal["target", "online"] = "online"


class MSBRegConfig(MethodSection):
    """MSBReg (Moon et al. 2022): centroids of K views, and two dispersive terms.

    K is the number of the recipe's views: two, and `augment.local.count` more. The singular value term's
    exact form is not public; `pretrain.objectives.msbreg` says what stands in for it.
    """

    views: ClassVar[tuple[Views, ...]] = ("two", "multicrop")

    implementation: ClassVar[str] = "carryover.pretrain.methods.msbreg:MSBReg"

    name: Literal["msbreg"]
    target: DetachedTarget = MomentumTarget()
    predictor: PredictorConfig = PredictorConfig()
    lam_s: NonNegativeFloat = 0.004
    lam_b: NonNegativeFloat = 0.5


class _BankSection(MethodSection):
    """Options shared by SqrtKL and NPID: one view, and a bank with one row per image.

    Attributes
    ----------
    tau
        Temperature of Eq. 1; SqrtKL's paper keeps NPID's head and states none, so NPID's 0.07.
    bank_momentum
        m of Eq. 3 and 6.
    bank_precision
        How rows are stored; sums over them are taken in float32 at least.
    bank_sharded
        Each rank holds a part of the rows instead of all of them; the loss is the same.
    """

    views: ClassVar[tuple[Views, ...]] = ("single",)

    tau: PositiveFloat = 0.07
    bank_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    bank_precision: Literal["fp32", "bf16"] = "fp32"
    bank_sharded: Annotated[bool, Incidental] = False


class SqrtKLConfig(_BankSection):
    """SqrtKL (Cao and Wu 2023): single-branch instance discrimination over a bank of all images.

    Attributes
    ----------
    lam
        Weight lambda of the SqrtKL loss (Eq. 13); 0 leaves the cross-entropy alone.
    l1, l2
        Weights of its two halves (Table 8).
    feature_calibrate
        Start the bank from one forward pass of the untrained network instead of random directions.
    grad_update
        Update the bank along the corrected direction of Eq. 5 instead of the image's own embedding (Eq. 3).
    """

    implementation: ClassVar[str] = "carryover.pretrain.methods.instance:SqrtKL"

    name: Literal["sqrtkl"]
    lam: NonNegativeFloat = 20.0
    l1: NonNegativeFloat = 1.0
    l2: NonNegativeFloat = 1.0
    feature_calibrate: bool = True
    grad_update: bool = True


class NPIDConfig(_BankSection):
    """NPID (Wu et al. 2018) over all N classes; `proximal` weighs |z_i - w_i|^2 (SqrtKL Eq. 11)."""

    implementation: ClassVar[str] = "carryover.pretrain.methods.instance:NPID"

    name: Literal["npid"]
    proximal: NonNegativeFloat = 0.0


class SupervisedConfig(MethodSection):
    """Supervised pretraining by cross-entropy: the baseline that sees labels."""

    views: ClassVar[tuple[Views, ...]] = ("single",)
    wants_projector: ClassVar[bool] = False
    wants_labels: ClassVar[bool] = True

    implementation: ClassVar[str] = "carryover.pretrain.methods.baselines:Supervised"

    name: Literal["supervised"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class RandomConfig(MethodSection):
    """No pretraining: the seed's initialization, exported as it is. The baseline that sees nothing."""

    views: ClassVar[tuple[Views, ...]] = ("single", "two", "multicrop")
    wants_projector: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    implementation: ClassVar[str] = "carryover.pretrain.methods.baselines:Untrained"

    name: Literal["random"]


METHODS: Registry[type[MethodSection]] = Registry("method", "carryover.methods")
"""Sections by method; a user's package adds one by an entry point of the group, or by `register_method`."""

for _section in (
    UniGradConfig,
    SiMoConfig,
    MoCoConfig,
    MoCoV3Config,
    SimCLRConfig,
    BYOLConfig,
    SimSiamConfig,
    DirectPredConfig,
    BarlowTwinsConfig,
    VICRegConfig,
    MSBRegConfig,
    SqrtKLConfig,
    NPIDConfig,
    SupervisedConfig,
    RandomConfig,
):
    METHODS.register(get_args(_section.model_fields["name"].annotation)[0], _section)

MethodConfig = Annotated[MethodSection, Tagged(METHODS, "name")]


def register_method(section: type[MethodSection]) -> type[MethodSection]:
    """Add a method for this process: the section that stands under ``method:`` in its recipes.

    A package does the same for every process by an entry point of the group ``carryover.methods``. May be
    used as a decorator.

    Raises UserError where another method has the name, or the class does not say what carries it out.
    """
    names = get_args(section.model_fields["name"].annotation)
    if len(names) != 1 or not section.implementation:
        raise UserError(
            f"{section.__name__}: a method's section has a name, name: Literal['NAME'], and says what carries"
            " it out, implementation: ClassVar[str] = 'module:Class'"
        )
    METHODS.register(names[0], section)
    return section
