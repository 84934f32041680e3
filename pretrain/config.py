"""PretrainConfig: everything that decides a pretraining run, checked before the first image is read."""

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from carryover.configs import Incidental, Recipe, Section
from carryover.core.data.config import AugmentConfig, DataConfig
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.training.device_name import DeviceName
from carryover.core.training.schedules import check_milestones, warmup_cosine, warmup_multistep
from carryover.pretrain.method_config import MethodConfig, MoCoConfig, SimCLRConfig, SiMoConfig
from carryover.pretrain.online_config import OnlineConfig

__all__ = [
    "AdamWConfig",
    "AugmentConfig",
    "BackboneConfig",
    "DataConfig",
    "KNNConfig",
    "LARSConfig",
    "MethodConfig",
    "OnlineConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "ProjectorConfig",
    "SGDConfig",
    "ScheduleConfig",
    "TransformerConfig",
]


class ProjectorConfig(Section):
    """The head between features and embeddings: a chain of linear layers.

    Attributes
    ----------
    depth
        Number of linear layers; 1 is a plain linear map (NPID, SqrtKL).
    hidden, out
        Width of the layers before the last, and of the embedding.
    norm
        Normalization after every layer but the last, each followed by ReLU.
    norm_last
        Whether the last layer is normalized as well, without ReLU (SiMo: "a BN attached to each of the
        fully-connected layers").
    affine_last
        Whether that last norm has a weight and a bias (SimSiam's has none).
    """

    depth: Annotated[int, Field(ge=1, le=5)] = 3
    hidden: PositiveInt = 2048
    out: Annotated[int, Field(ge=2)] = 2048
    norm: Literal["batch", "layer", "none"] = "batch"
    norm_last: bool = False
    affine_last: bool = True

    @model_validator(mode="after")
    def _norm_last_has_a_norm(self) -> "ProjectorConfig":
        if self.norm_last and self.norm == "none":
            raise ValueError("norm_last: true needs a norm: batch or layer")
        if not self.affine_last and not self.norm_last:
            raise ValueError("affine_last: false is of the last layer's norm: it needs norm_last: true")
        return self


class TransformerConfig(Section):
    """Initialization of a vision transformer of timm, and its frozen parts.

    Attributes
    ----------
    init
        First weights: "timm", the model's own; "moco_v3", those of MoCo v3's code (Xavier's uniform ones, of
        query, key and value each by itself, zero biases, a class token of nearly zero).
    positions
        "learned", or "sincos": fixed two-dimensional sines and cosines (MoCo v3, MAE).
    frozen_patch_embed
        Leave the random projection of the patches untrained (MoCo v3, section 4.1: a stable training).
    """

    init: Literal["timm", "moco_v3"] = "timm"
    positions: Literal["learned", "sincos"] = "learned"
    frozen_patch_embed: bool = False


class _OptimizerSection(Section):
    """Options shared by all optimizers.

    Attributes
    ----------
    base_lr, lr_per
        The linear scaling rule: the peak rate is base_lr x batch_size / lr_per, with the global batch size.
        A rate given at one batch size ("0.1 at batch 512") has that batch as its `lr_per`.
    lr
        The scaled rate as the source states it. It decides nothing: when given, it must agree with the rule.
    weight_decay
        L2 penalty on the weights.
    decay_norm_and_bias
        Whether biases, normalization parameters, and a transformer's tokens and positions are decayed too.
    """

    base_lr: PositiveFloat
    lr_per: PositiveInt = 256
    lr: PositiveFloat | None = None
    weight_decay: NonNegativeFloat = 1e-4
    decay_norm_and_bias: bool = True


class SGDConfig(_OptimizerSection):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False


class LARSConfig(_OptimizerSection):
    """LARS (You et al. 2017): each weight's rate in proportion to |w| / |gradient|.

    Attributes
    ----------
    trust_coefficient
        eta, the factor of that proportion.
    base_lr_norm_and_bias
        A separate base rate for biases, normalization parameters, tokens and positions, which are excluded
        from the adaptation; None: the weights' own.
    """

    name: Literal["lars"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 1e-6
    decay_norm_and_bias: bool = False
    trust_coefficient: PositiveFloat = 1e-3
    base_lr_norm_and_bias: PositiveFloat | None = None


class AdamWConfig(_OptimizerSection):
    """AdamW (Loshchilov and Hutter 2019): a vision transformer's."""

    name: Literal["adamw"]
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.05
    decay_norm_and_bias: bool = False


OptimizerConfig = Annotated[SGDConfig | LARSConfig | AdamWConfig, Field(discriminator="name")]


class ScheduleConfig(Section):
    """Length of the training, and the learning rate along it: linear warm-up, then half a cosine or steps.

    Attributes
    ----------
    floor
        Fraction of the peak rate that the warm-up starts from and the cosine ends at.
    cosine_over
        How long the half cosine is: "after_warmup", the steps that are left then; or "all" steps of the
        training, those of the warm-up included, so that it ends above the floor (UniGrad's public code).
    milestones, gamma
        Epochs at which the rate is multiplied by `gamma`, in place of the cosine (MoCo v1: 120, 160 of 200).
    """

    epochs: NonNegativeInt
    warmup_epochs: NonNegativeFloat = 0.0
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    cosine_over: Literal["after_warmup", "all"] = "after_warmup"
    milestones: tuple[PositiveInt, ...] = ()
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def factor(self, step: int, epoch_steps: int) -> float:
        """Return the factor on the peak rate at `step` (0-based), in epochs of `epoch_steps`."""
        warmup = round(self.warmup_epochs * epoch_steps)
        if self.milestones:
            steps = [epoch * epoch_steps for epoch in self.milestones]
            return warmup_multistep(step, steps, self.gamma, warmup, self.floor)
        total = self.epochs * epoch_steps
        over = total if self.cosine_over == "all" else None
        return warmup_cosine(step, total, warmup, self.floor, over)

    @model_validator(mode="after")
    def _milestones_fit(self) -> "ScheduleConfig":
        check_milestones(self.milestones, self.epochs)
        return self

    @model_validator(mode="after")
    def _one_shape(self) -> "ScheduleConfig":
        if self.milestones and self.cosine_over == "all":
            raise ValueError("cosine_over: all is of the cosine, which milestones take the place of")
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> "ScheduleConfig":
        if self.warmup_epochs > 0 and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} leaves nothing of the {self.epochs} epochs:"
                " the warm-up must end before the training does"
            )
        return self


class KNNConfig(Section):
    """A look at the features every few epochs: k-NN accuracy on another split's images.

    `images` is the most taken of either split, class by class alike; `k` and `tau` are NPID's.
    """

    every: PositiveInt = 10
    split: str = "val"
    images: PositiveInt = 10000
    k: PositiveInt = 20
    tau: PositiveFloat = 0.07


class PretrainConfig(Recipe):
    """A pretraining recipe: method, network, data, optimization and how the run is carried out.

    Attributes
    ----------
    batch_size
        Images of one optimizer step over all ranks.
    transformer
        How a vision transformer begins and what of it is frozen; None: as timm's model begins, all trained.
    zero_init_residual
        Whether the last batch norm of every residual block of a ResNet starts at zero, and the block as the
        identity (Goyal et al. 2017; the public codes of UniGrad, SimSiam, Barlow Twins, VICReg; not MoCo's).
    accumulate
        Parts in which each rank embeds its images of a step. Loss and gradient stay those of the whole batch
        (`pretrain.accumulate`); batch norm sees the parts.
    precision
        ``bf16`` autocasts the networks; objectives, optimizer and momentum encoder stay in float32.
    sync_bn
        Batch statistics over all ranks (then a run on n ranks computes what one process would).
    checkpoint_every
        Epochs between two saved states; a state is saved on SIGUSR2 and SIGTERM besides.
    log_every
        Steps between two lines of metrics.jsonl.
    knn
        k-NN accuracy on held-out images while training; None: never.
    online
        Signals of what the features are worth while training, at a small share of its time; None: none.
    tensorboard
        Whether the numbers of metrics.jsonl go to TensorBoard as well.
    compile
        Whether `torch.compile` makes kernels of the networks: a minute or more at the start, a faster step,
        numbers that differ by rounding.
    workers
        Data-loading processes of each rank; 0 loads in the training process.
    device
        What it runs on: auto (a GPU when there is one), cpu, cuda, xpu, mps, or another backend of torch.
    """

    method: MethodConfig
    backbone: BackboneConfig = BackboneConfig()
    transformer: TransformerConfig | None = None
    zero_init_residual: bool = False
    projector: ProjectorConfig | None = None
    data: DataConfig
    augment: AugmentConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    batch_size: Annotated[int, Field(ge=2)]
    accumulate: PositiveInt = 1
    seed: Annotated[NonNegativeInt, Incidental] = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    channels_last: bool = True
    sync_bn: bool = True
    checkpoint_every: Annotated[PositiveInt, Incidental] = 1
    log_every: Annotated[PositiveInt, Incidental] = 10
    knn: Annotated[KNNConfig | None, Incidental] = None
    online: Annotated[OnlineConfig | None, Incidental] = None
    tensorboard: Annotated[bool, Incidental] = True
    compile: Annotated[bool, Incidental] = False
    workers: Annotated[NonNegativeInt, Incidental] = 4
    device: DeviceName = "auto"

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up, scaled to the batch size."""
        return self.optimizer.base_lr * self.batch_size / self.optimizer.lr_per

    @model_validator(mode="after")
    def _rate_agrees(self) -> "PretrainConfig":
        o = self.optimizer
        if o.lr is not None and not math.isclose(o.lr, self.peak_lr, rel_tol=1e-3):
            raise ValueError(
                f"optimizer.lr is stated as {o.lr:g}, but base_lr x batch_size / lr_per ="
                f" {o.base_lr:g} x {self.batch_size} / {o.lr_per} = {self.peak_lr:g};"
                " correct one of them, or set optimizer.lr=null"
            )
        return self

    @model_validator(mode="after")
    def _has_residual_blocks(self) -> "PretrainConfig":
        if self.zero_init_residual and not self.backbone.is_resnet:
            raise ValueError(
                f"zero_init_residual is defined for ResNets only, not for {self.backbone.arch}: set it to"
                " false"
            )
        return self

    @model_validator(mode="after")
    def _is_a_transformer(self) -> "PretrainConfig":
        if self.transformer is not None and not self.backbone.arch.startswith("timm/"):
            raise ValueError(
                f"transformer is for vision transformers (backbone.arch: timm/vit_...), not for"
                f" {self.backbone.arch}: set transformer: null"
            )
        return self

    @model_validator(mode="after")
    def _attends_as_its_file_says(self) -> "PretrainConfig":
        if self.backbone.attention is not None:
            raise ValueError("backbone.attention: windows and relative positions are a detector's")
        return self

    @model_validator(mode="after")
    def _method_fits(self) -> "PretrainConfig":
        method = self.method
        if self.augment.views not in method.views:
            wanted = " or ".join(method.views)
            raise ValueError(f"method {method.name} needs augment.views: {wanted}, not {self.augment.views}")
        if method.wants_projector and self.projector is None:
            raise ValueError(f"method {method.name} needs a projector section")
        if not method.wants_projector and self.projector is not None:
            raise ValueError(f"method {method.name} has no projector: set projector: null")
        if method.trains and self.schedule.epochs == 0:
            raise ValueError(f"method {method.name} trains: schedule.epochs must be at least 1")
        if not method.trains and self.schedule.epochs > 0:
            raise ValueError(f"method {method.name} does not train: schedule.epochs must be 0")
        if isinstance(method, SiMoConfig) and method.negatives >= self.batch_size:
            raise ValueError(
                f"method.negatives {method.negatives} are drawn from the batch's other images:"
                f" at most {self.batch_size - 1} at batch_size {self.batch_size}"
            )
        most = 2 * self.batch_size - 2
        if isinstance(method, SimCLRConfig) and (method.negatives or 0) > most:
            raise ValueError(
                f"method.negatives {method.negatives} are drawn from both views of the batch's other images:"
                f" at most {most} at batch_size {self.batch_size}"
            )
        if isinstance(method, SiMoConfig | MoCoConfig) and method.shuffle_bn and self.sync_bn:
            raise ValueError(
                "method.shuffle_bn: true shuffles what sync_bn: true makes equal: set sync_bn: false"
            )
        if self.augment.cutmix is not None and not method.takes_cutmix:
            raise ValueError(f"method {method.name} has no CutMix form: set augment.cutmix: null")
        if self.augment.cutmix is not None and getattr(method, "correlation_source", "") == "online":
            raise ValueError(
                "augment.cutmix: F comes from clean images, which only the target branch sees: it needs"
                " correlation_source: momentum"
            )
        return self
