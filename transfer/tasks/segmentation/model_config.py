"""The segmenter's part of a recipe, with mmsegmentation's defaults (torch-free)."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from carryover.configs import Section

Dropout = Annotated[float, Field(ge=0, lt=1)]


class AuxiliaryConfig(Section):
    """A second head on layer3, for training only (Zhao et al. 2017, Sec. 3.2).

    Attributes
    ----------
    weight
        Factor on its loss.
    channels, convs
        Width and number of its 3x3 convolutions.
    """

    weight: PositiveFloat = 0.4
    channels: PositiveInt = 256
    convs: PositiveInt = 1


class _SharedConfig(Section):
    """Options shared by all segmenters.

    Attributes
    ----------
    backbone
        mmseg's name of a ResNet. Only the plain one has torchvision's stem; other networks are what the
        checkpoint says.
    norm
        Normalization of the heads, and of a backbone that has batch normalization; in a single process plain
        BN.
    dropout
        Share of the head's channels that is dropped before the classifier.
    align_corners
        How maps are resized; mmseg sets it for odd crops (769).
    frozen
        Train the head alone; weights and statistics of the backbone stay as they are, bit for bit.
    drop_path
        Stochastic depth of a backbone of timm; null: timm's own.
    """

    backbone: str = "ResNet"
    norm: Literal["BN", "SyncBN"] = "SyncBN"
    dropout: Dropout = 0.1
    align_corners: bool = False
    frozen: bool = False
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None

    @field_validator("backbone")
    @classmethod
    def _plain_stem(cls, backbone: str) -> str:
        if backbone in ("ResNetV1c", "ResNetV1d"):
            raise ValueError(
                f"'{backbone}' has a deep stem (three 3x3 convolutions) that no checkpoint with torchvision's"
                " 7x7 stem fits; a carried backbone needs 'ResNet'"
            )
        if backbone != "ResNet":
            raise ValueError(f"segmenters are built on 'ResNet' only, not on '{backbone}'")
        return backbone


class _SegmenterConfig(_SharedConfig):
    """Options shared by FCN and UPerNet.

    Attributes
    ----------
    channels
        Width of the head.
    auxiliary
        The auxiliary head, or null for none.
    blocks
        Of a plain vision transformer: the four blocks (from 0) whose maps are taken as those of four stages;
        null: those at a third, a half, two thirds and the end (3, 5, 7 and 11 of 12), as BEiT and MAE do.
    """

    channels: PositiveInt = 512
    auxiliary: AuxiliaryConfig | None = AuxiliaryConfig()
    blocks: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt] | None = None


class FCNConfig(_SegmenterConfig):
    """FCN on a dilated backbone (Long et al. 2015; "FCN-d8" is output stride 8).

    Attributes
    ----------
    output_stride
        8 dilates the last two stages, 16 the last one alone. A plain transformer has one stride, its patch:
        16 of patches of 14 or 16 pixels.
    convs, concat_input
        3x3 convolutions of the head, and whether their input is joined to their output. torchvision's own
        FCNHead is ``convs: 1, concat_input: false, channels: 512`` (of a ResNet-50).
    """

    name: Literal["fcn"]
    output_stride: Literal[8, 16, 32] = 8
    convs: PositiveInt = 2
    concat_input: bool = True

    @property
    def label(self) -> str:
        """The segmenter's usual name."""
        return f"FCN-d{self.output_stride}"


class UPerNetConfig(_SegmenterConfig):
    """UPerNet (Xiao et al. 2018): pooling pyramid on the last stage, feature pyramid over all.

    The four maps of a plain transformer are first brought to a quarter, a half, one and two patches (mmseg's
    `Feature2Pyramid`, as in BEiT and MAE).

    Attributes
    ----------
    pool_scales
        Grids of the pooling pyramid.
    """

    name: Literal["upernet"]
    pool_scales: tuple[PositiveInt, ...] = Field(default=(1, 2, 3, 6), min_length=1)

    @property
    def label(self) -> str:
        """The segmenter's usual name."""
        return "UPerNet"


class LinearHeadConfig(_SharedConfig):
    """A linear classifier of every cell of the map: batch normalization and a 1x1 convolution.

    DINOv2's linear segmentation (Oquab et al. 2024, Sec. 7.4; `BNHead` of its code): the backbone is frozen,
    and the maps of the last blocks are taken as they are, class token and registers taking part.

    Attributes
    ----------
    layers
        How many blocks of a plain transformer, counted from the last, are joined (DINOv2: 1 "linear", 4
        "+ms"); of other networks, the last stages, resized to the largest.
    """

    name: Literal["linear"]
    frozen: bool = True
    dropout: Dropout = 0.0
    layers: Annotated[int, Field(ge=1, le=4)] = 1

    @property
    def auxiliary(self) -> None:
        """There is none."""
        return None

    @property
    def label(self) -> str:
        """The segmenter's usual name."""
        return "linear" if self.layers == 1 else f"linear on {self.layers} layers"


ModelConfig = Annotated[FCNConfig | UPerNetConfig | LinearHeadConfig, Field(discriminator="name")]
