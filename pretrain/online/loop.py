"""Online signals in a training loop of one's own: `carryover.OnlineSignals`."""

from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from carryover.configs.loading import validate
from carryover.core.data.config import AugmentConfig, DataConfig
from carryover.core.data.prepared import build_dataset
from carryover.core.formats.canonical import IMAGENET_MEAN, IMAGENET_STD
from carryover.core.training.journal import Journal
from carryover.pretrain.online.signals import Numbers, Signals
from carryover.pretrain.online_config import OnlineConfig

Triple = tuple[float, float, float]


class OnlineSignals:
    """Looks at a network in training every few steps: k-NN and linear accuracy, RankMe, LiDAR.

    The network is left as it was (modes, gradients, running statistics), and no random number is drawn: the
    training is unaffected. In a job of several processes one of them makes this and calls
    it.

    Parameters
    ----------
    data
        Root of the images: class folders below ``train`` and the held-out split. Without class folders, or
        with ``split=None``, nothing is classified.
    size
        Side of the images in pixels.
    every
        Steps between two looks; None needs `images_per_step`, and takes `share` (1 %) of the training's
        passes.
    images_per_step
        Images, all views counted, that this process trains on in a step.
    out
        Where metrics.jsonl and TensorBoard's files are written; None: nowhere, the numbers are returned.
    mean, std
        Normalization of RGB in [0, 1] that the network is trained with.
    augment
        The random views of LiDAR, as the ``augment`` section of a recipe; None: those of MoCo v2 at `size`.
    resumed_from
        The last step that is done: lines of later ones are dropped from metrics.jsonl.
    bf16
        Whether the networks run under autocast when they are looked at.
    settings
        Keys of `pretrain.online_config.OnlineConfig`: ``split``, ``train_images``, ``lidar_views``, ...

    Raises
    ------
    UserError
        Images that are not there, splits of other classes, unknown settings.
    """

    def __init__(
        self,
        data: str | Path,
        *,
        size: int,
        every: int | None = None,
        images_per_step: int | None = None,
        out: str | Path | None = None,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
        augment: dict[str, Any] | None = None,
        train_split: str = "train",
        kind: str = "imagefolder",
        tensorboard: bool = True,
        resumed_from: int = 0,
        bf16: bool = False,
        **settings: Any,
    ) -> None:
        config: OnlineConfig = validate(OnlineConfig, {"every": every, **settings}, "OnlineSignals")
        if every is None and images_per_step is None:
            raise ValueError("OnlineSignals: set every=STEPS, or images_per_step=IMAGES to compute it")
        views = {"view": {"size": size}, **(augment or {}), "mean": mean, "std": std}
        shown: AugmentConfig = validate(AugmentConfig, views, "OnlineSignals: augment")
        where = {"kind": kind, "root": Path(data), "split": train_split}
        training: DataConfig = validate(DataConfig, where, "OnlineSignals: data")
        held_out = None
        if config.split is not None:
            held_out = build_dataset(validate(DataConfig, {**where, "split": config.split}, "OnlineSignals"))
        self.every = config.steps_between(images_per_step or 1)
        self._bf16 = bf16
        self._signals = Signals.of(config, build_dataset(training), held_out, shown)
        self._journal = None if out is None else Journal(Path(out), resumed_from, tensorboard)

    def __call__(self, step: int, backbone: nn.Module, head: nn.Module | None = None) -> Numbers:
        """Look after `step` steps if it is time, write and return the numbers; {} at any other step.

        `backbone` turns images (B, 3, H, W) into features (B, D), `head` those into embeddings (B, d).
        """
        if step % self.every:
            return {}
        numbers = self._signals.look(backbone, head, self._bf16)
        if self._journal is not None:
            self._journal.write(step, numbers)
        return numbers

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._journal is not None:
            self._journal.__exit__(None, None, None)

    def __enter__(self) -> "OnlineSignals":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
