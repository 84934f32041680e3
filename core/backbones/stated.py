"""Statements about another project's file: by its user, or by a configuration."""

from dataclasses import dataclass, fields, replace
from typing import Literal

from carryover.configs import UserError
from carryover.core.formats.canonical import IMAGENET_MEAN, IMAGENET_STD

Triple = tuple[float, float, float]
Order = Literal["RGB", "BGR"]


@dataclass(frozen=True)
class Pixels:
    """Normalization of images: mean and deviation for images in [0, 1], in channel order `order`."""

    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    order: Order = "RGB"

    @property
    def rgb(self) -> tuple[Triple, Triple]:
        """Mean and deviation in the order red, green, blue."""
        if self.order == "RGB":
            return self.mean, self.std
        return self.mean[::-1], self.std[::-1]


_NAMED = {
    "imagenet": Pixels(),
    # Detectron2's and mmdetection's models from Caffe weights: mean of BGR in 0..255, no deviation.
    "caffe": Pixels((103.53 / 255, 116.28 / 255, 123.675 / 255), (1 / 255, 1 / 255, 1 / 255), "BGR"),
    "half": Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": Pixels((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "zero": Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Stated:
    """Statements about a checkpoint's network and images; None: from the file, or assumed.

    Attributes
    ----------
    architecture
        The network: torchvision's name, or ``timm/NAME``, with timm's tag where it is one of its weights.
    stem, stride_in_1x1, padding, heads
        As in `BackboneConfig`.
    pixels
        The normalization that the weights expect.
    input_size
        Side in pixels of the images that it was trained on, as a configuration says it.
    method
        How it was pretrained, as a configuration says it.
    norm_eps
        Epsilon of the layer norms in the configuration's own library.
    where
        Who says so: "--pixels", "meta.cfg of the file", "config.yaml beside the file".
    """

    architecture: str | None = None
    stem: str | None = None
    stride_in_1x1: bool | None = None
    padding: str | None = None
    heads: int | None = None
    pixels: Pixels | None = None
    input_size: int | None = None
    method: str | None = None
    norm_eps: float | None = None
    where: str = ""

    def over(self, other: "Stated") -> "Stated":
        """Return what `self` says, and where it says nothing what `other` does."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(other, **kept | {"where": " and ".join(w for w in (self.where, other.where) if w)})


def parse_pixels(text: str) -> Pixels:
    """Parse ``mean/std/order``, numbers in 0..1 or 0..255: ``123.7,116.3,103.5/58.4,57.1,57.4/RGB``.

    ``imagenet``, ``caffe`` (BGR, mean of 0..255), ``half``, ``clip`` and ``zero`` are known by name. Raises
    UserError for anything else.
    """
    if text in _NAMED:
        return _NAMED[text]
    parts = text.split("/")
    try:
        mean, std = (tuple(float(v) for v in part.split(",")) for part in parts[:2])
        order = parts[2].upper() if len(parts) == 3 else "RGB"
        if len(parts) not in (2, 3) or len(mean) != 3 or len(std) != 3 or order not in ("RGB", "BGR"):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--pixels {text}: expected mean/std/order, as 123.675,116.28,103.53/58.395,57.12,57.375/RGB,"
            f" or one of {', '.join(_NAMED)}"
        ) from None
    return pixels_of(mean, std, order, f"--pixels {text}")


def pixels_of(mean: tuple[float, ...], std: tuple[float, ...], order: str, where: str) -> Pixels:
    """Return statistics given in 0..1 or 0..255; raises UserError for what cannot be any."""
    if len(mean) != 3 or len(std) != 3 or min(mean) < 0 or max(mean) > 255 or min(std) <= 0 or max(std) > 255:
        raise UserError(f"{where}: pixel mean {list(mean)} and deviation {list(std)} cannot be of images")
    # A mean of 0..1 images never is above 1; deviations of 1 occur in both units.
    scale = 255.0 if max(mean) > 1 else 1.0
    m, s = (tuple(v / scale for v in values) for values in (mean, std))
    return Pixels((m[0], m[1], m[2]), (s[0], s[1], s[2]), "BGR" if order == "BGR" else "RGB")
