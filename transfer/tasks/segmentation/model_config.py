"""The segmenter's part of a recipe, with mmsegmentation's defaults (torch-free)."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

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


class _SegmenterConfig(Section):
    """What both segmenters share.

    Attributes
    ----------
    backbone
        mmseg's name of the backbone. Only the plain ResNet has torchvision's stem.
    norm
        Normalisation of backbone and heads; in a single process both are plain BN.
    channels, dropout
        Width of the head, and the share of its channels that is dropped before the classifier.
    align_corners
        How maps are resized; mmseg sets it for odd crops (769).
    auxiliary
        The auxiliary head, or null for none.
    """

    backbone: str = "ResNet"
    norm: Literal["BN", "SyncBN"] = "SyncBN"
    channels: PositiveInt = 512
    dropout: Dropout = 0.1
    align_corners: bool = False
    auxiliary: AuxiliaryConfig | None = AuxiliaryConfig()

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


class FCNConfig(_SegmenterConfig):
    """FCN on a dilated backbone (Long et al. 2015; "FCN-d8" is output stride 8).

    Attributes
    ----------
    output_stride
        8 dilates the last two stages, 16 the last one alone.
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
    """UPerNet (Xiao et al. 2018): pooling pyramid on the last stage, feature pyramid over all; mmseg only.

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


ModelConfig = Annotated[FCNConfig | UPerNetConfig, Field(discriminator="name")]
