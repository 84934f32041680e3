"""Pixel statistics: the ones a checkpoint was trained with and the ones a recipe feeds it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from carryover.configs import UserError
from carryover.core.once import log_once

log = logging.getLogger(__name__)


class StatedPixels(Protocol):
    """Input statistics of a dense-prediction recipe, in 0..255 as in Detectron2."""

    @property
    def pixel_mean(self) -> Sequence[float]: ...

    @property
    def pixel_std(self) -> Sequence[float]: ...

    @property
    def channel_order(self) -> str: ...


class StatedCrops(Protocol):
    """Input statistics of a recipe for labeled images, in 0..1; None: the checkpoint's own."""

    @property
    def pixel_mean(self) -> Sequence[float] | None: ...

    @property
    def pixel_std(self) -> Sequence[float] | None: ...

    @property
    def size(self) -> int: ...

    @property
    def input_size(self) -> str: ...


class TrainedOn(Protocol):
    """Statistics of the images that a checkpoint was trained on, in 0..1."""

    @property
    def pixel_mean(self) -> Sequence[float]: ...

    @property
    def pixel_std(self) -> Sequence[float]: ...

    @property
    def channel_order(self) -> str: ...

    @property
    def input_size(self) -> int: ...

    @property
    def assumed(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class WillBeTrainedOn:
    """Statistics that the checkpoint of a planned pretraining will state."""

    pixel_mean: Sequence[float]
    pixel_std: Sequence[float]
    input_size: int
    channel_order: str = "RGB"
    assumed: Mapping[str, str] = field(default_factory=dict)


def require_same_pixels(stated: StatedPixels, metadata: TrainedOn, checkpoint: object) -> None:
    """Raise UserError, naming the key, for a checkpoint that was trained on images normalized differently.

    `checkpoint` is its path, or what it is called before there is one. What is only assumed of a checkpoint
    is no error: the recipe decides.
    """
    if "pixels" in metadata.assumed:
        return
    for name, ours, theirs in (
        ("pixel_mean", stated.pixel_mean, metadata.pixel_mean),
        ("pixel_std", stated.pixel_std, metadata.pixel_std),
    ):
        # Checkpoints count in 0..1.
        scaled = [255 * v for v in theirs]
        if any(abs(a - b) > 0.01 for a, b in zip(ours, scaled, strict=True)):
            shown = ", ".join(f"{v:.3f}" for v in scaled)
            raise UserError(
                f"{checkpoint}: was trained with {name} [{shown}], but the recipe says"
                f" input.{name}: {list(ours)}"
            )
    if metadata.channel_order != stated.channel_order:
        raise UserError(
            f"{checkpoint}: channel order {metadata.channel_order}, but the recipe says"
            f" input.channel_order: {stated.channel_order}"
        )


def require_same_crops(stated: StatedCrops, metadata: TrainedOn, checkpoint: object) -> None:
    """Raise UserError for a checkpoint trained on images of another size or normalization than the recipe's.

    What is only assumed, of a file that does not say, is none to be compared with. The message names the key,
    both values and the file.
    """
    for key, ours, theirs in (
        ("pixel_mean", stated.pixel_mean, metadata.pixel_mean),
        ("pixel_std", stated.pixel_std, metadata.pixel_std),
    ):
        if "pixels" in metadata.assumed or ours is None:
            continue
        if max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > 1e-4:
            raise UserError(f"image.{key} is {list(ours)}, but {checkpoint} was trained with {list(theirs)}")
    knows = getattr(metadata, "knows", None)
    assumed = knows is not None and not knows("input_size")
    if assumed and stated.size != metadata.input_size:
        # That it does not say is among what is assumed of it; here, that the assumption decides nothing.
        sentence = "%s: crops of %d px are shown, as image.size says; the %d px assumed of it decide nothing"
        log_once(log, logging.INFO, sentence, checkpoint, stated.size, metadata.input_size)
    elif stated.input_size == "checkpoint" and stated.size != metadata.input_size:
        raise UserError(
            f"image.size is {stated.size}, but {checkpoint} was trained on crops of {metadata.input_size};"
            " set image.size and image.resize to fit, or image.input_size=any"
        )
