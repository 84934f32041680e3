"""Decisions on what a file does not state: by user, configuration, maker, or assumed."""

from dataclasses import dataclass, field
from pathlib import Path

from carryover.configs import UserError
from carryover.core.backbones.makers import Encoder
from carryover.core.backbones.reading import Contents
from carryover.core.backbones.stated import Pixels, Stated, pixels_of
from carryover.core.formats.backbone import BASIC, BackboneConfig
from carryover.core.formats.canonical import IMPORTED, CanonicalMetadata

# Their authors' code builds torchvision's networks, whatever the file says.
_TORCHVISION_NETWORKS = frozenset(
    {
        "MoCo v1/v2",
        "MoCo v3",
        "UniGrad",
        "DINO",
        "VISSL",
        "SimSiam",
        "Barlow Twins / VICReg",
        "SwAV / DeepCluster v2",
        "solo-learn",
        "torchvision detector",
    }
)
# Who writes the number of the epoch that has just ended, counted from 0.
_COUNT_FROM_ZERO = frozenset({"timm", "MAE", "solo-learn", "lightly"})
_ASSUMED_SIZE = 224
_CAFFE = Pixels((103.53 / 255, 116.28 / 255, 123.675 / 255), (1 / 255, 1 / 255, 1 / 255), "BGR")
# Converted by their authors from torchvision's names: RGB, stride in the 3x3 convolution.
_CONVERTED = "matching_heuristics"


@dataclass(frozen=True)
class Resolved:
    """A network and its images, decided.

    Attributes
    ----------
    assumed
        What was not stated, by topic: a sentence each, with the option that states it.
    """

    config: BackboneConfig
    pixels: Pixels
    assumed: dict[str, str] = field(default_factory=dict)


def resolve(
    config: BackboneConfig, encoder: Encoder, maker: str, contents: Contents, told: Stated, path: Path
) -> Resolved:
    """Decide what the tensors of a ResNet or small network leave open.

    Raises UserError for statements that contradict the tensors.
    """
    _require_architecture(config, told, path)
    assumed: dict[str, str] = {}
    stem = told.stem or _stem(config, encoder, maker, path, assumed)
    plain = told.architecture is not None or maker in _TORCHVISION_NETWORKS
    stride = told.stride_in_1x1
    zoo = encoder.scheme == "detectron2" and _CONVERTED not in contents.entries
    if stride is None and config.is_resnet:
        stride = zoo and config.arch not in BASIC
        if zoo:
            assumed["stride"] = (
                f"Detectron2's own default, stride in the {'1x1' if stride else '3x3'} convolution: the file"
                " has no config.yaml beside it; say --stride-in-1x1 or --no-stride-in-1x1"
            )
        elif encoder.scheme != "detectron2" and not plain and told.padding is None:
            assumed["network"] = _others_with_these_tensors(config.arch)
    pixels = _pixels(contents, told, zoo, path, assumed)
    if told.input_size is None:
        assumed["input_size"] = f"trained on crops of {_ASSUMED_SIZE} px (--input-size)"
    try:
        decided = BackboneConfig(
            arch=config.arch,
            width=config.width,
            stem=stem,
            stride_in_1x1=bool(stride),
            padding=told.padding or "symmetric",
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return Resolved(decided, pixels, assumed)


def metadata_of(
    resolved: Resolved, maker: str, encoder: Encoder, contents: Contents, told: Stated
) -> CanonicalMetadata:
    """Return what a canonical checkpoint of an imported backbone says of itself."""
    mean, std = resolved.pixels.rgb
    return CanonicalMetadata(
        backbone=resolved.config,
        norm="bn" if resolved.config.family != "timm" else "own",
        pixel_mean=mean,
        pixel_std=std,
        input_size=told.input_size or resolved.config.input_size or _ASSUMED_SIZE,
        method=told.method or maker,
        epochs=_epochs(contents, maker),
        dataset="unknown",
        seed=None,
        recipe=IMPORTED,
        recipe_hash=None,
        git_revision="unknown",
        library_versions={},
        maker=maker,
        encoder=encoder.role,
        assumed=resolved.assumed,
        stated=() if told.input_size is None else ("input_size",),
    )


def require_nothing_stated(told: Stated, path: Path) -> None:
    """Raise UserError where something is stated of a canonical checkpoint, which says it itself."""
    given = [
        f"--{name.replace('_', '-')}"
        for name in ("architecture", "stem", "padding", "stride_in_1x1", "heads", "pixels")
        if getattr(told, name) is not None
    ]
    if given:
        raise UserError(
            f"{path}: {', '.join(given)}: carryover's own file says this itself; say it where the maker's"
            " file is converted"
        )


def assume_pixels(assumed: dict[str, str]) -> Pixels:
    """Return ImageNet's statistics, and say that they are assumed."""
    assumed["pixels"] = "RGB images with ImageNet's mean and deviation (--pixels mean/std/order)"
    return Pixels()


def _others_with_these_tensors(arch: str) -> str:
    others = ["TensorFlow's padding (--padding same)"]
    if arch not in BASIC:
        others.insert(0, "Caffe's stride (--stride-in-1x1)")
    depth = arch.removeprefix("resnet")
    return (
        f"the plain {arch}; {', '.join(others)} and anti-aliased networks (--architecture"
        f" timm/resnetaa{depth}, timm/resnetblur{depth}) have the same tensors"
    )


def _require_architecture(config: BackboneConfig, told: Stated, path: Path) -> None:
    if told.architecture not in (None, config.arch):
        raise UserError(
            f"{path}: --architecture {told.architecture}: the tensors are those of a {config.label}"
        )
    if told.heads is not None:
        raise UserError(f"{path}: --heads: a {config.label} has no attention heads")


def _stem(config: BackboneConfig, encoder: Encoder, maker: str, path: Path, assumed: dict[str, str]) -> str:
    if not config.is_resnet:
        return config.stem
    if encoder.scheme == "sequential":
        # Children of a network, numbered: the stages begin after convolution, norm and what else it has.
        first = min(encoder.stages)
        if config.stem == "imagenet" and first != 4:
            raise UserError(
                f"{path}: its stages begin at '{encoder.prefix}{first}.', so its 7x7 stem has no"
                f" {'max pooling' if first == 3 else 'activation'}; carryover's has both"
            )
        if config.stem == "cifar" and first < 4:
            return "cifar_no_relu" if first == 2 else "cifar"
    if config.stem == "cifar" and maker not in _TORCHVISION_NETWORKS - {"solo-learn"}:
        assumed["stem"] = (
            "a 3x3 stem of stride 1, its activation, and no max pooling after it (--stem cifar_maxpool where"
            " there is one, --stem cifar_no_relu for lightly's ResNetGenerator)"
        )
    return config.stem


def _pixels(contents: Contents, told: Stated, zoo: bool, path: Path, assumed: dict[str, str]) -> Pixels:
    if told.pixels is not None:
        return told.pixels
    if (own := _pixel_tensors(contents, path)) is not None:
        return own
    if zoo:
        assumed["pixels"] = (
            "Detectron2's own defaults, BGR images of 0..255 less their mean: the file has no config.yaml"
            " beside it (--pixels mean/std/order)"
        )
        return _CAFFE
    return assume_pixels(assumed)


def _pixel_tensors(contents: Contents, path: Path) -> Pixels | None:
    """Return the statistics that Detectron2 models keep as tensors, in 0..255; None where there are none."""
    found: dict[str, tuple[float, ...]] = {}
    for name, value in contents.tensors.items():
        field_ = name.rpartition(".")[2]
        if field_ in ("pixel_mean", "pixel_std") and value.numel() == 3:
            found[field_] = tuple(float(number) for number in value.flatten())
    if "pixel_mean" not in found:
        return None
    mean = found["pixel_mean"]
    # The mean of natural images is brighter in red than in blue.
    order = "BGR" if mean[0] < mean[2] else "RGB"
    return pixels_of(mean, found.get("pixel_std", (1.0, 1.0, 1.0)), order, f"{path}: 'pixel_mean'")


def _epochs(contents: Contents, maker: str) -> float | None:
    found = contents.entries.get("epoch", contents.configuration.get("meta.epoch"))
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) + (1 if maker in _COUNT_FROM_ZERO else 0)
