"""What the frozen-feature recipes say: k-NN, linear classifiers, VOC07's SVM, t-SNE (torch-free)."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from carryover.configs import Incidental, Recipe, Section
from carryover.transfer.classify.config import AllLabels, Labels, Schedule
from carryover.transfer.classify.data_config import ClassifyData, ImageConfig


class FrozenRecipe(Recipe):
    """What every evaluation of a frozen network shares.

    Attributes
    ----------
    precision
        That of the network's forward pass; features are kept, and classifiers trained, in float32.
    extract_batch
        Images of one forward pass over all ranks where nothing is trained.
    store
        Folder of the feature store; None: ``features`` beside the checkpoint, or in the output directory
        where that cannot be written.
    """

    image: ImageConfig = ImageConfig()
    precision: Literal["bf16", "fp32"] = "fp32"
    seed: Annotated[NonNegativeInt, Incidental] = 0
    extract_batch: Annotated[PositiveInt, Incidental] = 256
    store: Annotated[Path | None, Incidental] = None
    workers: Annotated[NonNegativeInt, Incidental] = 4


class KnnConfig(FrozenRecipe):
    """Weighted k-nearest-neighbour classification (Wu et al. 2018).

    Attributes
    ----------
    labels
        Which training images are neighbours.
    k, temperatures
        Every pair of them is reported; all come from one search of the largest k.
    """

    task: Literal["knn"] = "knn"
    data: ClassifyData
    labels: Labels = AllLabels()
    k: tuple[PositiveInt, ...] = Field(default=(20, 200), min_length=1)
    temperatures: tuple[PositiveFloat, ...] = Field(default=(0.07, 0.1), min_length=1)


class SGDHeads(Section):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False


class LARSHeads(Section):
    """LARS on weight and bias, as apex's LARC does it (see `transfer.classify.stacked_heads`)."""

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
        forward pass. Depths are "pooled", or stages ("layer1" ... "layer4"), averaged over the image.
    held_out
        Part of every class on which one of several classifiers is chosen (and which is not trained on).
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

    @property
    def scaled_lrs(self) -> tuple[float, ...]:
        """The peak rates at this batch size."""
        return tuple(lr * self.batch_size / self.lr_per for lr in self.base_lrs)

    @property
    def heads(self) -> int:
        """How many classifiers are trained."""
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

    Attributes
    ----------
    costs
        Values of C; the best on the held-out part is used, and all labelled images fitted with it.
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

    task: Literal["linear"] = "linear"
    data: ClassifyData
    labels: Labels = AllLabels()
    mode: Annotated[ProtocolMode | CachedMode, Field(discriminator="name")]
    checkpoint_every: Annotated[PositiveInt, Incidental] = 1
    log_every: Annotated[PositiveInt, Incidental] = 10


class VocImages(Section):
    """A Pascal VOC data set seen as images with several labels each.

    Attributes
    ----------
    root
        ``VOCdevkit``, or one VOC folder itself.
    train, test
        Splits as year/name, or a name alone where the root is one VOC folder.
    classes
        Class names; None: VOC's twenty.
    """

    title: str = "VOC 07"
    root: Annotated[Path | None, Incidental] = None
    train: str = "2007/trainval"
    test: str = "2007/test"
    classes: tuple[str, ...] | None = None


class LowShot(Section):
    """SVMs on few images: `positives` of every class, each number drawn `draws` times."""

    positives: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16, 32, 64, 96)
    draws: PositiveInt = 5


class SvmConfig(FrozenRecipe):
    """Linear SVMs on frozen features of VOC07 (msbreg_supplement 2.4; Goyal et al. 2019).

    Attributes
    ----------
    costs
        Candidate values of C; each class takes the one that cross-validates best on the training split.
    low_shot
        None: the full training split only.
    metric
        "area" (the benchmark's code) or "11point" (VOC2007's rule).
    """

    task: Literal["svm"] = "svm"
    data: VocImages
    costs: tuple[PositiveFloat, ...] = Field(min_length=1)
    metric: Literal["area", "11point"] = "area"
    low_shot: LowShot | None = None


class TsneConfig(FrozenRecipe):
    """A t-SNE picture of test features (sqrtkl Figure 6).

    Attributes
    ----------
    images
        Test images shown, drawn by the seed, equally many of every class; 0: all.
    perplexity
        scikit-learn's.
    """

    task: Literal["tsne"] = "tsne"
    data: ClassifyData
    images: NonNegativeInt = 5000
    perplexity: PositiveFloat = 30.0
