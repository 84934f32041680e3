"""SegmentationConfig: everything that decides a segmentation run, for either backend (torch-free)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from carryover.configs import Incidental, Section
from carryover.core.data.masks.config import SegmentationData
from carryover.core.training.solver import ScaledSolver
from carryover.core.training.watch_config import WatchConfig
from carryover.transfer.tasks.recipe import EvaluationRecipe
from carryover.transfer.tasks.segmentation.model_config import ModelConfig

Size = tuple[PositiveInt, PositiveInt]


class InputConfig(Section):
    """Input of the network.

    Attributes
    ----------
    scale, ratio_range
        A training image is resized to fit (long edge, short edge), both multiplied by a ratio drawn from the
        range, keeping its shape.
    crop_size
        (height, width) of a training crop; what an image lacks of it is padding that is ignored.
    cat_max_ratio
        A crop of which one class has more than this share is drawn again, ten times at most; 1 takes any.
    flip, photometric
        Mirror half of the training images; disturb brightness, contrast, saturation and hue (as SSD does).
    test_scale
        What a test image is resized to fit; null leaves it. Scores are measured at its own size.
    test_mode, test_stride
        "whole" images, or "slide" a window of crop_size over them, (height, width) pixels a step, and
        average.
    channel_order, pixel_mean, pixel_std
        Statistics in 0..255 that must be those the checkpoint was trained with.
    """

    scale: Size = (2048, 512)
    ratio_range: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    crop_size: Size = (512, 512)
    cat_max_ratio: Annotated[float, Field(gt=0, le=1)] = 0.75
    flip: bool = True
    photometric: bool = True
    test_scale: Size | None = (2048, 512)
    test_mode: Literal["whole", "slide"] = "whole"
    test_stride: Size | None = None
    channel_order: Literal["RGB"] = "RGB"
    pixel_mean: tuple[float, float, float] = (123.675, 116.280, 103.530)
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.120, 57.375)

    @model_validator(mode="after")
    def _sizes_fit(self) -> "InputConfig":
        if self.ratio_range[0] > self.ratio_range[1]:
            raise ValueError(f"ratio_range: {list(self.ratio_range)} descends; [smallest, largest]")
        if (self.test_mode == "slide") != (self.test_stride is not None):
            raise ValueError("test_stride: [height, width] goes with test_mode: slide, and only with it")
        if self.test_stride and any(s > c for s, c in zip(self.test_stride, self.crop_size, strict=True)):
            raise ValueError(
                f"test_stride {list(self.test_stride)} is larger than crop_size {list(self.crop_size)}:"
                " pixels between two windows would be in neither"
            )
        return self


class SolverConfig(ScaledSolver):
    """SGD with a polynomial schedule; see `ScaledSolver`.

    Attributes
    ----------
    base_lr, min_lr, power
        The rate of iteration t of T is min_lr + (base_lr - min_lr) (1 - t / (T - 1))^power (Chen et al. 2018,
        Sec. 4.1; mmengine's PolyLR).
    rise_iters
        Length of a linear warm-up from 1e-6 of the rate, at the reference batch; the polynomial follows.
    weight_decay
        L2 penalty on every parameter, as in mmseg's schedules.
    decay_weights_only
        Weight decay is that of matrices and filters alone: not of biases, norms, tokens and positions.
    """

    base_lr: PositiveFloat = 0.01
    min_lr: NonNegativeFloat = 1e-4
    power: PositiveFloat = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    rise_iters: NonNegativeInt = 0
    decay_weights_only: bool = False

    @property
    def final_lr(self) -> float:
        """The last learning rate, at this batch."""
        return self.min_lr * self.scale

    def rate(self, iteration: int) -> float:
        """Return the rate of a 0-based iteration at this batch; `final_lr` at the last one."""
        rise = self.scaled(self.rise_iters) if self.rise_iters else 0
        if iteration < rise:
            return self.peak_lr * (1e-6 + (1 - 1e-6) * iteration / rise)
        left = 1 - (iteration - rise) / max(1, self.iterations - 1 - rise)
        return self.final_lr + (self.peak_lr - self.final_lr) * left**self.power

    @model_validator(mode="after")
    def _schedule_fits(self) -> "SolverConfig":
        if self.min_lr > self.base_lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above base_lr {self.base_lr:g}")
        if self.rise_iters >= self.max_iter:
            raise ValueError(f"rise_iters {self.rise_iters} leaves nothing of max_iter {self.max_iter}")
        return self


METRIC_RULE = "mean IoU, of pixels summed over all test images"


class SegmentationConfig(EvaluationRecipe):
    """A segmentation recipe: data, segmenter, input, optimization; the backbone comes with the checkpoint.

    Attributes
    ----------
    backend
        The library that builds and trains the segmenter. Both read the same recipe.
    label_fraction, label_seed
        Part of the training images that is trained on, every class in proportion; of one seed the smaller
        part lies in the larger one. None: the run's seed, so that every trial draws its own.
    seed
        Decides initialization of the new layers, order and augmentation of the images, and dropout.
    workers
        Image-loading processes of each rank; 0 loads in the training process.
    checkpoints
        How many times over the run the training state is saved.
    log_every
        Iterations between two lines of metrics.jsonl.
    watch
        The metric on held-out images while training, for the log; see `WatchConfig`.
    samples
        Test images painted with what was found in them for the report.
    """

    implementation: ClassVar[str] = "carryover.transfer.tasks.segmentation.task:Segmentation"
    # Since 2 all testing is in float32.
    version: ClassVar[int] = 2
    trained_since: ClassVar[int | None] = 1

    task: Literal["segmentation"] = "segmentation"
    backend: Literal["torchvision", "mmseg"] = "torchvision"
    data: SegmentationData
    model: ModelConfig
    input: InputConfig = InputConfig()
    solver: SolverConfig
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    label_seed: NonNegativeInt | None = None
    seed: Annotated[NonNegativeInt, Incidental] = 0
    workers: Annotated[NonNegativeInt, Incidental] = 4
    checkpoints: Annotated[PositiveInt, Incidental] = 10
    log_every: Annotated[PositiveInt, Incidental] = 50
    watch: Annotated[WatchConfig, Incidental] = WatchConfig()
    samples: Annotated[NonNegativeInt, Incidental] = 8

    def version_of_v1(self, processes: int | None) -> int:
        """Return 2 for float32, and for mmseg, which has always tested in it."""
        return 2 if self.solver.precision == "fp32" or self.backend == "mmseg" else 1
