"""Recipe of a fine-tuning, checked before torch is imported."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from carryover.configs import Incidental, Section
from carryover.core.data.labelled.config import ClassifyData, ImageConfig
from carryover.core.data.labelled.labels import Labels
from carryover.core.training.watch_config import WatchConfig
from carryover.transfer.tasks.recipe import EvaluationRecipe
from carryover.transfer.tasks.schedules import Schedule

Seed = Annotated[NonNegativeInt, Incidental]
FC_NORM = "fc_norm"


class FinetuneOptimizer(Section):
    """SGD, or AdamW, with separate rates for backbone and head.

    Attributes
    ----------
    algorithm, betas
        "adamw" is Loshchilov and Hutter's, with these betas (and no momentum).
    layer_decay
        The backbone's rate falls by this factor with every layer below the head (`core.backbones.layers`); 1:
        one rate for all.
    base_lr_backbone, base_lr_head, lr_per
        The linear scaling rule: a rate is base_lr x batch_size / lr_per. A rate that the source states at one
        batch size has that batch as its `lr_per`.
    lr_backbone, lr_head
        The scaled rates as the source states them. They decide nothing: when given, they must agree.
    decay_norm_and_bias
        Whether biases and normalization parameters are decayed too; with "adamw" also tokens and positions.
    """

    algorithm: Literal["sgd", "adamw"] = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    base_lr_backbone: NonNegativeFloat
    base_lr_head: PositiveFloat
    lr_per: PositiveInt = 256
    lr_backbone: NonNegativeFloat | None = None
    lr_head: PositiveFloat | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0
    decay_norm_and_bias: bool = True

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "FinetuneOptimizer":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: true needs a momentum above 0")
        return self


class AttentiveConfig(Section):
    """Learnt queries that attend to the tokens of the network (see `finetune.attentive`).

    Attributes
    ----------
    heads, queries
        Of the cross-attention; the features of several queries are averaged.
    """

    heads: PositiveInt = 12
    queries: PositiveInt = 1


class MixConfig(Section):
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of training images and labels, by timm.

    Images are mixed within groups, each with one draw (mode "batch" of `timm.data.Mixup`): an image with the
    one that is as far from the group's end as it is from the beginning.

    Attributes
    ----------
    mixup, cutmix
        Parameters of their Beta distributions; 0: never.
    prob, switch
        Probability that a group is mixed at all, and that it is CutMix where both may be.
    group
        Images of a group: the batch that the source mixes at once, which is that of one GPU.
    """

    mixup: NonNegativeFloat = 0.8
    cutmix: NonNegativeFloat = 1.0
    prob: Annotated[float, Field(gt=0, le=1)] = 1.0
    switch: Annotated[float, Field(ge=0, le=1)] = 0.5
    group: Annotated[int, Field(ge=2)] = 32

    @model_validator(mode="after")
    def _something_is_mixed(self) -> "MixConfig":
        if self.mixup == 0 and self.cutmix == 0:
            raise ValueError("mixup: 0 and cutmix: 0 mix nothing; leave mix out")
        return self


class LastEpoch(Section):
    """The result is that of the last epoch."""

    name: Literal["last"] = "last"


class BestEpoch(Section):
    """The result is that of the epoch which is best on a held-out part of the *labeled* images.

    `held_out` is the part of every class that is not trained on.
    """

    name: Literal["best_epoch"]
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2


class GridOfRates(Section):
    """Rates are chosen on a held-out part of the labeled images; then all of them are trained on.

    Attributes
    ----------
    held_out
        Part of every class that is held out while choosing.
    base_lr_backbone, head_multiples
        Every backbone rate is tried with every multiple of it for the head.
    """

    name: Literal["grid"]
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    base_lr_backbone: tuple[PositiveFloat, ...] = Field(min_length=1)
    head_multiples: tuple[PositiveFloat, ...] = Field(min_length=1)

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """Every (backbone base rate, head base rate), in the order in which they are tried."""
        return tuple((lr, lr * m) for lr in self.base_lr_backbone for m in self.head_multiples)


Selection = Annotated[LastEpoch | BestEpoch | GridOfRates, Field(discriminator="name")]


class FinetuneConfig(EvaluationRecipe):
    """A fine-tuning recipe: a labeled subset, rates for backbone and head, and how the result is chosen.

    Attributes
    ----------
    labels
        Which training images keep their labels.
    selection
        Which result counts: the last epoch's, unless one is selected on held-out labeled images.
    batch_size
        Images of one optimizer step over all ranks. The last, smaller batch of an epoch is trained on too.
    drop_last
        Leave that last batch out.
    freeze_backbone
        Train the head alone; weights and statistics of the backbone stay as they are, bit for bit.
    bn
        Batch normalization in training: "train" uses and tracks the batch's statistics, "eval" keeps the
        checkpoint's (its weights are trained either way, unless the backbone is frozen).
    sync_bn
        Batch statistics over all ranks.
    head_init
        First weights of the head: "normal" N(0, 0.01^2) with zero bias, "zero", "uniform" (torch's own), or
        "truncated" (N(0, 2e-5^2), cut at 2, as MAE's).
    head_norm
        "batch": a batch normalization without weights before the head, so that one rate fits features
        of any scale (He et al. 2022, A.1, linear probing); its statistics are trained, whatever `bn` says.
    feature
        What the head reads: "pooled", the network's own; of a vision transformer also "cls", "mean", ... as
        frozen tasks have them, and "fc_norm": the mean of the patches, then a new norm in place of the last
        one, as MAE fine-tunes.
    drop_path
        Stochastic depth of a backbone of timm in training (linear in depth); null: timm's own.
    smoothing
        Label smoothing of the loss.
    mix
        Mixup and CutMix; null: neither.
    attentive
        Pool the tokens of the frozen network by learnt attention: the attentive probe.
    checkpoint_every
        Epochs between two saved states; a state is saved on SIGUSR2 and SIGTERM besides.
    watch
        Accuracy on held-out images while training, for the log; see `WatchConfig`.
    keep_weights
        Write the tested classifier to classifier.safetensors.
    """

    implementation: ClassVar[str] = "carryover.transfer.tasks.finetune.task:Finetune"
    # Since 2 all testing is in float32, and of equal scores the first class counts.
    version: ClassVar[int] = 2
    trained_since: ClassVar[int | None] = 1

    task: Literal["finetune"] = "finetune"
    data: ClassifyData
    labels: Labels
    image: ImageConfig = ImageConfig()
    optimizer: FinetuneOptimizer
    schedule: Schedule
    selection: Selection = LastEpoch()
    batch_size: Annotated[int, Field(ge=2)]
    drop_last: bool = False
    freeze_backbone: bool = False
    bn: Literal["train", "eval"] = "train"
    sync_bn: bool = False
    head_init: Literal["normal", "zero", "uniform", "truncated"] = "normal"
    head_norm: Literal["none", "batch"] = "none"
    feature: str = "pooled"
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mix: MixConfig | None = None
    attentive: AttentiveConfig | None = None
    seed: Seed = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    channels_last: bool = True
    checkpoint_every: Annotated[PositiveInt, Incidental] = 1
    log_every: Annotated[PositiveInt, Incidental] = 10
    watch: Annotated[WatchConfig, Incidental] = WatchConfig()
    keep_weights: Annotated[bool, Incidental] = True
    workers: Annotated[NonNegativeInt, Incidental] = 4

    def version_of_v1(self, processes: int | None) -> int:
        """Return 2 for float32, in which classes do not tie."""
        return 2 if self.precision == "fp32" else 1

    @property
    def lr_backbone(self) -> float:
        """The backbone's peak rate, scaled to the batch size."""
        return self.optimizer.base_lr_backbone * self.batch_size / self.optimizer.lr_per

    @property
    def lr_head(self) -> float:
        """The head's peak rate, scaled to the batch size."""
        return self.optimizer.base_lr_head * self.batch_size / self.optimizer.lr_per

    @model_validator(mode="after")
    def _rates_agree(self) -> "FinetuneConfig":
        o = self.optimizer
        for part, stated, scaled in (
            ("backbone", o.lr_backbone, self.lr_backbone),
            ("head", o.lr_head, self.lr_head),
        ):
            if stated is not None and not math.isclose(stated, scaled, rel_tol=1e-3):
                raise ValueError(
                    f"optimizer.lr_{part} is stated as {stated:g}, but base_lr_{part} x batch_size / lr_per ="
                    f" {scaled:g}; correct one of them, or set optimizer.lr_{part}=null"
                )
        return self

    @model_validator(mode="after")
    def _frozen_means_frozen(self) -> "FinetuneConfig":
        trained = self.optimizer.base_lr_backbone > 0
        if self.attentive is not None and not (self.freeze_backbone and self.feature == "pooled"):
            raise ValueError("attentive: the probe is of a frozen network's tokens; freeze_backbone: true")
        if self.freeze_backbone and trained:
            raise ValueError("freeze_backbone: true needs optimizer.base_lr_backbone: 0")
        if self.freeze_backbone and self.bn != "eval":
            raise ValueError("freeze_backbone: true needs bn: eval, else the statistics would change")
        if self.freeze_backbone and isinstance(self.selection, GridOfRates):
            raise ValueError("selection: a grid over backbone rates makes no sense with a frozen backbone")
        if not self.freeze_backbone and not trained:
            raise ValueError("optimizer.base_lr_backbone: 0 trains nothing; say freeze_backbone: true")
        return self
