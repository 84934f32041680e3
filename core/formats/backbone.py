"""The description of a backbone, as recipes and checkpoints carry it; the architectures (torch-free)."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from carryover.configs import Section
from carryover.configs.registry import Registry

BACKBONES: Registry[Callable[["BackboneConfig"], Any]] = Registry("backbone", "carryover.backbones")
"""Builders by architecture: each takes the section and returns a freshly initialized network.

The network maps images (B, 3, H, W) to pooled features (B, `feature_dim`), and its `feature_maps(x)` returns
every stage's maps by name. A user's package adds one by an entry point, or by `register_backbone`.
"""

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
BASIC = ("resnet18", "resnet34")
MOBILE = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0")

for _arch in RESNETS:
    BACKBONES.register(_arch, "carryover.core.backbones.build:build_resnet")
for _arch in MOBILE:
    BACKBONES.register(_arch, "carryover.core.backbones.build:build_mobile")
# A family of many networks is registered once: its networks are called FAMILY/NAME.
FAMILIES: Registry[Callable[["BackboneConfig"], Any]] = Registry(
    "backbone family", "carryover.backbone_families"
)
FAMILIES.register("timm", "carryover.core.backbones.timm_build:build_timm")


CHANGES_FEATURES = frozenset({"network", "stem", "stride", "heads", "pixels", "norm"})
"""Property that may be assumed of a checkpoint, and that changes its features if it is wrong."""


def _known(arch: str) -> str:
    family, slash, name = arch.partition("/")
    if slash and family in FAMILIES and name:
        return arch
    if arch not in BACKBONES:
        raise ValueError(f"{BACKBONES.unknown(arch)}, and timm/NAME for any of timm's models")
    return arch


# Networks under torchvision's names, which Detectron2 and mmsegmentation build from groups and widths.
_OF_RESNETS = re.compile(r"(resnet|timm/resnext|timm/wide_resnet)(\d+)(?:_(\d+)x(\d+)d|_2)?")
_SINCE_V1 = ("arch", "width", "stem")
Architecture = Annotated[str, AfterValidator(_known)]
Stem = Literal["imagenet", "cifar", "cifar_maxpool", "cifar_no_relu"]


class AttentionConfig(Section):
    """Attention of a plain vision transformer in a detector (Li et al. 2022, ViTDet, Sec. 3).

    Attributes
    ----------
    window
        Side in patches of the windows that patches attend in; 0: every block attends to the whole image.
    global_blocks
        Blocks, from 0, that attend to the whole image all the same.
    relative_positions
        Whether every block adds decomposed relative positions to its attention (Li et al. 2022, MViTv2),
        which begin at zero.
    grid
        Patches along the side of the image that the tables of relative positions are made for; they are
        interpolated for every other number.
    """

    window: NonNegativeInt = 0
    global_blocks: tuple[NonNegativeInt, ...] = ()
    relative_positions: bool = False
    grid: PositiveInt

    def __str__(self) -> str:
        where = "in every block to the whole image"
        if self.window:
            blocks = ", ".join(str(block) for block in self.global_blocks)
            rest = f", but in blocks {blocks} to the whole image" if blocks else ""
            where = f"in windows of {self.window} x {self.window} patches{rest}"
        return f"{where}; {'with' if self.relative_positions else 'without'} relative positions"


class BackboneConfig(Section):
    """A backbone: architecture, width multiple and stem.

    Attributes
    ----------
    arch
        torchvision's name of the network, that of a registered one, or ``timm/NAME``.
    width
        Multiple of all channels; 2 and 4 are EqCo's ResNet-50 x2 and x4 (94 M and 375 M parameters, Table 8).
    stem
        "imagenet" (7x7 stride 2, max pooling) or "cifar" (3x3 stride 1, no pooling; for 32 px images). Of
        other makers: "cifar_maxpool" (3x3 stride 1, then max pooling), "cifar_no_relu" (lightly's
        ResNetGenerator, no activation after the stem).
    stride_in_1x1
        Bottlenecks stride in their first 1x1 convolution (the original ResNet, "caffe"), not in the 3x3.
    padding
        "symmetric", or "same" as TensorFlow pads (of strided layers one pixel more at the end).
    input_size
        Side in pixels that a network with positions was built for; None: its own.
    pool
        How a model of timm pools, where that decides its layers ("avg": with `fc_norm`); None: its own way.
    heads
        Attention heads of a vision transformer, which no tensor tells; None: as many as timm's model has.
    tokens
        Whether a vision transformer's class token and registers take part; False: its patches alone.
    drop_path
        Stochastic depth of a model of timm in training; None: timm's own.
    patch_size
        Side in pixels of the patches of a model of timm, or of a ConvNeXt's first convolution; None: its own.
    attention
        Windows and relative positions of a plain vision transformer; detectors set it. None: every block
        attends to the whole image, as in pretraining.
    """

    arch: Architecture = "resnet50"
    width: Literal[1, 2, 4] = 1
    stem: Stem = "imagenet"
    stride_in_1x1: bool = False
    padding: Literal["symmetric", "same"] = "symmetric"
    input_size: PositiveInt | None = None
    pool: str | None = None
    heads: PositiveInt | None = None
    tokens: bool = True
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    patch_size: PositiveInt | None = None
    attention: AttentionConfig | None = None

    @model_validator(mode="after")
    def _resnets_alone_have_variants(self) -> "BackboneConfig":
        if self.width != 1 and not self.is_resnet:
            raise ValueError(f"width {self.width} is defined for ResNets only, not for {self.arch}")
        if (self.stride_in_1x1 or self.padding != "symmetric") and not self.is_resnet:
            raise ValueError(f"stride_in_1x1 and padding are defined for ResNets only, not for {self.arch}")
        if self.stem in ("cifar_maxpool", "cifar_no_relu") and not self.is_resnet:
            raise ValueError(f"stem {self.stem} is defined for ResNets only, not for {self.arch}")
        if (not self.tokens or self.drop_path is not None) and not self.arch.startswith("timm/"):
            raise ValueError(f"tokens and drop_path are defined for models of timm only, not for {self.arch}")
        if self.patch_size is not None and not self.arch.startswith("timm/"):
            raise ValueError(f"patch_size is defined for models of timm only, not for {self.arch}")
        if self.stem != "imagenet" and self.arch.startswith("timm/"):
            raise ValueError(
                f"stem {self.stem} is not defined for {self.arch}, whose first layer is its own; for small"
                " images set patch_size"
            )
        if self.stride_in_1x1 and self.arch in BASIC:
            raise ValueError(f"stride_in_1x1: {self.arch} is made of basic blocks, which have no 1x1")
        return self

    @property
    def family(self) -> str:
        """The family of networks that it is one of: "resnet", "timm", or its own name."""
        family, slash, _ = self.arch.partition("/")
        return family if slash else "resnet" if self.is_resnet else self.arch

    @property
    def depth(self) -> int | None:
        """The layers of a network of the ResNet family; None of any other."""
        match = _OF_RESNETS.fullmatch(self.arch)
        return int(match[2]) if match else None

    @property
    def groups(self) -> tuple[int, int] | None:
        """Groups of the 3x3 convolutions and channels of each in the first stage; None of other families.

        (1, 64) is a ResNet-50, (32, 4) ResNeXt-50 32x4d, (1, 128) Wide ResNet-50-2.
        """
        match = _OF_RESNETS.fullmatch(self.arch)
        if match is None:
            return None
        if match[1].endswith("resnext"):
            return int(match[3]), int(match[4])
        return (1, 128) if match[1].endswith("wide_resnet") else (1, 64 * self.width)

    def stated(self) -> dict[str, Any]:
        """Return it as plain data, without the newer fields that have their defaults.

        What was written and hashed before they existed stays as it was.
        """
        plain = self.model_dump(mode="json")
        return {k: v for k, v in plain.items() if k in _SINCE_V1 or v != type(self).model_fields[k].default}

    @property
    def is_resnet(self) -> bool:
        """Return whether the network has ResNet's stages, and so can carry a detector."""
        return self.arch in RESNETS

    @property
    def with_stem(self) -> str:
        """The stem in words where it is not the usual one, for messages; empty otherwise."""
        return "" if self.stem == "imagenet" else f" with the '{self.stem}' stem"

    @property
    def label(self) -> str:
        """The name used in reports, for example ``resnet50 x2`` or ``vit_small_patch16_224``."""
        name = self.arch.removeprefix("timm/")
        return name if self.width == 1 else f"{name} x{self.width}"

    @property
    def variants(self) -> str:
        """Return the difference from the plain network of its name, in words; empty for that one."""
        words = [f"{self.stem} stem"] if self.stem != "imagenet" else []
        words += ["stride in the 1x1 convolution"] if self.stride_in_1x1 else []
        words += ["TensorFlow's padding"] if self.padding == "same" else []
        words += [f"positions for {self.input_size} px"] if self.input_size else []
        words += [f"pool {self.pool}"] if self.pool else []
        words += [f"{self.heads} heads"] if self.heads else []
        words += [f"patches of {self.patch_size} px"] if self.patch_size else []
        words += [] if self.tokens else ["patches alone"]
        words += [f"attention {self.attention}"] if self.attention else []
        return ", ".join(words)


def register_backbone(arch: str, build: Callable[[BackboneConfig], Any]) -> None:
    """Add an architecture for this process; raises UserError where another one has the name."""
    BACKBONES.register(arch, build)
