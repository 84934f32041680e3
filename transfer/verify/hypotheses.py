"""Hypotheses: the same tensors under another reading."""

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.imported import Imported, live_backbone
from carryover.core.backbones.importers import take_backbone
from carryover.core.backbones.stated import Pixels, Stated
from carryover.core.formats.backbone import BackboneConfig

Cause = Literal["as it is", "channel order", "mean/std", "stem", "stride", "padding", "encoder", "size"]

_PIXELS: Final = {
    "ImageNet's mean and deviation": Pixels(),
    "mean and deviation of one half": Pixels((0.5,) * 3, (0.5,) * 3),
    "pixels in [0, 1] as they are": Pixels((0.0,) * 3, (1.0,) * 3),
    "pixels in 0..255 as they are": Pixels((0.0,) * 3, (1 / 255,) * 3),
    "pixels in 0..255 less ImageNet's mean": Pixels((0.485, 0.456, 0.406), (1 / 255,) * 3),
    "CIFAR-10's mean and deviation": Pixels((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
}
_STEMS: Final = {
    "cifar": "no max pooling after a 3x3 stem",
    "cifar_maxpool": "max pooling after a 3x3 stem",
    "cifar_no_relu": "no activation after the stem",
}


@dataclass(frozen=True)
class Look:
    """One reading of a file: a network and what it is shown.

    Attributes
    ----------
    cause
        What is wrong with the file's claim where this reading is the right one.
    words
        The reading in words, and `remedy` the option or command that gives it.
    """

    cause: Cause
    words: str
    network: nn.Module
    pixels: Pixels
    size: int
    remedy: str = ""

    def shown(self, x: Tensor) -> Tensor:
        """Normalize RGB images (B, 3, H, W) in [0, 1] as this reading says, in its channel order."""
        mean, std = (x.new_tensor(v)[:, None, None] for v in self.pixels.rgb)
        x = (x - mean) / std
        return x if self.pixels.order == "RGB" else x.flip(1)


def readings(path: Path, imported: Imported, size: int, native: int) -> Iterator[Look]:
    """Yield the file as it is, then every other reading of its tensors that fits their shapes.

    `size` is the side of the images that it is shown, `native` that of the data's own.
    """
    about = imported.metadata
    as_it_is = Pixels(about.pixel_mean, about.pixel_std)
    network = live_backbone(imported).eval()
    first = Look("as it is", "as the file says", network, as_it_is, size)
    yield first
    yield replace(
        first,
        cause="channel order",
        words="the weights expect BGR images",
        pixels=Pixels(as_it_is.mean[::-1], as_it_is.std[::-1], "BGR"),
        remedy="--pixels mean/std/BGR where the maker's file is converted",
    )
    for words, pixels in _PIXELS.items():
        if not _alike(pixels, as_it_is):
            said = "/".join(",".join(f"{255 * v:.4g}" for v in of) for of in (pixels.mean, pixels.std))
            remedy = f"--pixels {said}/RGB where the maker's file is converted"
            yield replace(first, cause="mean/std", words=words, pixels=pixels, remedy=remedy)
    for cause, config, words, remedy in _networks(about.backbone):
        yield replace(first, cause=cause, words=words, network=_rebuilt(config, network), remedy=remedy)
    for prefix, words in other_encoders(imported):
        other = take_backbone(path, prefix, _stated(imported))
        if other.metadata.backbone == about.backbone:
            net = live_backbone(other).eval()
            yield replace(first, cause="encoder", words=words, network=net, remedy=f"--encoder {prefix}")
    for other_size in _sizes(size, native, about.backbone):
        remedy = f"--input-size {other_size}, image.size={other_size}"
        words = f"images of {other_size} px"
        yield replace(first, cause="size", words=words, size=other_size, remedy=remedy)


def random_networks(config: BackboneConfig, how_many: int, seed: int) -> Iterator[nn.Module]:
    """Yield networks of this kind with new weights, of seeds from `seed` on."""
    import torch

    for number in range(how_many):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number)
            network: nn.Module = build_backbone(config)
        yield network.eval()


def copied(network: nn.Module) -> nn.Module:
    """Return a network of its own with the same weights."""
    return deepcopy(network)


def _alike(one: Pixels, other: Pixels) -> bool:
    """Return whether two normalizations differ by less than a tenth: no measurement tells them apart."""
    spread = max(abs(a / b - 1) for a, b in zip(one.std, other.std))
    moved = max(abs(a - b) / s for a, b, s in zip(one.mean, other.mean, other.std))
    return one.order == other.order and spread < 0.2 and moved < 0.2


def _networks(config: BackboneConfig) -> Iterator[tuple[Cause, BackboneConfig, str, str]]:
    if not config.is_resnet:
        return
    if config.stem != "imagenet":
        for stem, words in _STEMS.items():
            if stem != config.stem:
                yield "stem", config.model_copy(update={"stem": stem}), words, f"--stem {stem}"
    if config.arch not in ("resnet18", "resnet34"):
        where = config.model_copy(update={"stride_in_1x1": not config.stride_in_1x1})
        words = f"bottlenecks stride in their {'3x3' if config.stride_in_1x1 else '1x1'} convolution"
        yield "stride", where, words, f"--{'no-' if config.stride_in_1x1 else ''}stride-in-1x1"
    other: Literal["symmetric", "same"] = "symmetric" if config.padding == "same" else "same"
    words = "strided layers padded " + ("as TensorFlow pads" if other == "same" else "symmetrically")
    yield "padding", config.model_copy(update={"padding": other}), words, f"--padding {other}"


def _rebuilt(config: BackboneConfig, network: nn.Module) -> nn.Module:
    built: nn.Module = build_backbone(config)
    built.load_state_dict(network.state_dict(), strict=True)
    return built.eval()


def other_encoders(imported: Imported) -> Sequence[tuple[str, str]]:
    """Return the prefixes of the file's other encoders, and what they are in words."""
    found = [re.fullmatch(r"(\w+) at '(.*)'", other) for other in imported.alternatives]
    return [(m[2], f"the {m[1]} encoder, at '{m[2]}'") for m in found if m is not None]


def _stated(imported: Imported) -> Stated | None:
    """Return what reads another encoder of the file as the one that was taken was read."""
    if imported.layout == "canonical":
        return None
    config = imported.metadata.backbone
    if not config.is_resnet:
        return None
    try:
        pixels = Pixels(imported.metadata.pixel_mean, imported.metadata.pixel_std)
        return Stated(stem=config.stem, padding=config.padding, pixels=pixels)
    except UserError:
        return None


def _sizes(size: int, native: int, config: BackboneConfig) -> list[int]:
    """Return other sides in pixels: half, double, and the data's own; none for a network of one size."""
    if config.input_size is not None or config.family not in ("resnet", *_ANY_SIZE):
        return []
    wanted = [max(16, size // 2), size * 2, native]
    kept = [s for s in dict.fromkeys(wanted) if max(s, size) / min(s, size) >= 1.4 and s <= 512]
    return kept


_ANY_SIZE = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0")
