"""DetectionConfig: everything that decides a detection run, for either backend (torch-free)."""

from typing import Annotated, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from carryover.configs import Incidental, Section
from carryover.core.data.objects.config import DetectionData
from carryover.core.training.schedules import warmup_multistep
from carryover.core.training.solver import ScaledSolver
from carryover.core.training.watch_config import WatchConfig
from carryover.transfer.tasks.detection.model_config import C4Config, FPNConfig
from carryover.transfer.tasks.recipe import EvaluationRecipe

ModelConfig = Annotated[C4Config | FPNConfig, Field(discriminator="name")]


class InputConfig(Section):
    """Input of the network.

    Attributes
    ----------
    min_sizes_train, min_size_sampling
        Short edges in pixels: one of the list is drawn ("choice"), or any from the first to the last
        ("range").
    max_size_train, max_size_test
        The long edge is never larger; the short one shrinks with it.
    jitter, square
        Large-scale jitter (Ghiasi et al. 2021): training images are resized to fit a square of `square`
        pixels times a factor drawn from the range, and cropped to the square where they are larger; it
        replaces min_sizes_train. Batches are padded to the square, in testing too.
    flip
        Mirror half of the training images.
    channel_order, pixel_mean, pixel_std
        Statistics in 0..255 that must be those the checkpoint was trained with.
    """

    min_sizes_train: tuple[PositiveInt, ...] = Field(default=(800,), min_length=1)
    min_size_sampling: Literal["choice", "range"] = "choice"
    max_size_train: PositiveInt = 1333
    min_size_test: PositiveInt = 800
    max_size_test: PositiveInt = 1333
    jitter: tuple[PositiveFloat, PositiveFloat] | None = None
    square: PositiveInt | None = None
    flip: bool = True
    channel_order: Literal["RGB"] = "RGB"
    pixel_mean: tuple[float, float, float] = (123.675, 116.280, 103.530)
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.120, 57.375)

    @model_validator(mode="after")
    def _sizes_fit(self) -> "InputConfig":
        if self.min_size_sampling == "range" and len(self.min_sizes_train) != 2:
            raise ValueError("min_size_sampling: range takes min_sizes_train: [smallest, largest]")
        if max(self.min_sizes_train) > self.max_size_train:
            raise ValueError(
                f"min_sizes_train reaches {max(self.min_sizes_train)}, beyond max_size_train"
                f" {self.max_size_train}"
            )
        if self.jitter is not None and (self.square is None or self.jitter[0] > self.jitter[1]):
            raise ValueError("jitter takes [smallest, largest] factor, and the square that they multiply")
        if self.square is not None and self.square < max(
            self.max_size_test, 0 if self.jitter else self.max_size_train
        ):
            raise ValueError(f"square {self.square}: images are larger; lower max_size_test, max_size_train")
        if self.min_size_test > self.max_size_test:
            raise ValueError(
                f"min_size_test {self.min_size_test} is beyond max_size_test {self.max_size_test}"
            )
        return self


class SolverConfig(ScaledSolver):
    """SGD with a multi-step schedule; see `ScaledSolver`.

    Attributes
    ----------
    base_lr, max_iter, steps, warmup_iters
        Peak rate, length, where the rate is multiplied by `gamma`, and length of the linear warm-up (which
        starts at `warmup_factor` of the rate), at the reference batch.
    weight_decay, weight_decay_norm
        L2 penalty on weights and biases, and on the parameters of normalization layers.
    precision
        ``bf16`` autocasts the network; boxes, losses and the optimizer stay in float32.
    """

    base_lr: PositiveFloat = 0.02
    steps: tuple[PositiveInt, ...] = ()
    gamma: PositiveFloat = 0.1
    warmup_iters: NonNegativeInt = 1000
    warmup_factor: Annotated[float, Field(ge=0, le=1)] = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    weight_decay_norm: NonNegativeFloat = 0.0

    @property
    def milestones(self) -> tuple[int, ...]:
        """The steps at which the rate falls, at this batch."""
        return tuple(self.scaled(step) for step in self.steps)

    @property
    def warmup(self) -> int:
        """The steps of the warm-up at this batch."""
        return self.scaled(self.warmup_iters) if self.warmup_iters else 0

    def rate(self, iteration: int) -> float:
        """Return the rate of a 0-based iteration, at this batch."""
        factor = warmup_multistep(iteration, self.milestones, self.gamma, self.warmup, self.warmup_factor)
        return self.peak_lr * factor

    @field_validator("steps")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)):
            raise ValueError(f"steps must ascend, got {list(steps)}")
        return steps

    @model_validator(mode="after")
    def _schedule_fits(self) -> "SolverConfig":
        late = [step for step in self.steps if step >= self.max_iter]
        problems = [f"steps {late} are not before it"] if late else []
        if self.warmup_iters >= self.max_iter:
            problems.append(f"warmup_iters {self.warmup_iters} leaves nothing of it")
        if problems:
            raise ValueError(f"max_iter {self.max_iter}: {'; '.join(problems)}; {self._fitting()}")
        return self

    def _fitting(self) -> str:
        """Propose steps and a warm-up for this length: in their places, the last step at nine tenths."""
        last = max(1, round(0.9 * self.max_iter))
        steps = sorted({max(1, round(last * step / self.steps[-1])) for step in self.steps})
        steps = [step for step in steps if step < self.max_iter]
        warmup = min(self.warmup_iters, self.max_iter // 10)
        return f"these would fit: solver.steps={str(steps).replace(' ', '')} solver.warmup_iters={warmup}"


class DetectionConfig(EvaluationRecipe):
    """A detection recipe: data, detector, input, optimization; the backbone comes with the checkpoint.

    Attributes
    ----------
    backend
        The library that builds and trains the detector. Both read the same recipe.
    precise_bn
        Training batches over which batch statistics are estimated again before testing (Detectron2's
        TEST.PRECISE_BN.NUM_ITER); 0 tests with the running averages.
    label_fraction, label_seed
        Part of the training images that is trained on, every class in proportion; of one seed the smaller
        part lies in the larger one. None: the run's seed, so that every trial draws its own.
    seed
        Decides initialization of the new layers, order and augmentation of the images, and sampling.
    workers
        Image-loading processes of each rank; 0 loads in the training process.
    checkpoints
        How many times over the run the training state is saved.
    log_every
        Iterations between two lines of metrics.jsonl.
    watch
        The metric on held-out images while training, for the log; see `WatchConfig`.
    samples
        Test images drawn with their detections for the report.
    """

    implementation: ClassVar[str] = "carryover.transfer.tasks.detection.task:Detection"
    # 2: each process groups its own wide and tall images; of 1 they were grouped over all processes.
    # 3: all testing is in float32, and of equal scores the detection of the earlier image goes first. By
    #    VOC's rules, a class without a test object is in no mean.
    version: ClassVar[int] = 3
    trained_since: ClassVar[int | None] = 2

    task: Literal["detection"] = "detection"
    backend: Literal["torchvision", "detectron2"] = "torchvision"
    data: DetectionData
    model: ModelConfig
    input: InputConfig = InputConfig()
    solver: SolverConfig
    precise_bn: NonNegativeInt = 200
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    label_seed: NonNegativeInt | None = None
    seed: Annotated[NonNegativeInt, Incidental] = 0
    workers: Annotated[NonNegativeInt, Incidental] = 4
    checkpoints: Annotated[PositiveInt, Incidental] = 10
    log_every: Annotated[PositiveInt, Incidental] = 20
    watch: Annotated[WatchConfig, Incidental] = WatchConfig()
    samples: Annotated[NonNegativeInt, Incidental] = 8

    def version_of_v1(self, processes: int | None) -> int:
        """Return what was the same: the order of images in one process, tests in float32 without ties."""
        if processes != 1:
            return 1
        return 3 if self.solver.precision == "fp32" and self.data.kind == "coco" else 2

    @model_validator(mode="after")
    def _masks_are_annotated(self) -> "DetectionConfig":
        if self.model.masks and self.data.kind != "coco":
            layout = "the VOC layout has" if self.data.kind == "voc" else "kind: boxes is of"
            raise ValueError(f"model.masks: true needs instance masks; {layout} boxes only")
        return self
