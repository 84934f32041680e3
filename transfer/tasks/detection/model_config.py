"""The detector's part of a recipe, with Detectron2's defaults (torch-free)."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from carryover.configs import Section

Fraction = Annotated[float, Field(ge=0, le=1)]
Norm = Literal["FrozenBN", "BN", "SyncBN", "naiveSyncBN"]
NewNorm = Literal["none", "BN", "SyncBN", "naiveSyncBN", "LN"]


class RPNConfig(Section):
    """The region proposal network.

    Attributes
    ----------
    pre_nms_train, pre_nms_test, post_nms_train, post_nms_test
        Proposals kept before non-maximum suppression (of each feature level) and after it (of an image).
    nms_threshold
        IoU above which the lower-scored of two proposals goes.
    background_iou, foreground_iou
        Anchors below the first teach "no object", from the second on "object"; between them, nothing.
    batch_per_image, positive_fraction
        Anchors sampled for the loss, and the largest part of them that may be objects.
    head_convs
        3x3 convolutions before the two outputs; ViTDet has 2.
    """

    pre_nms_train: PositiveInt
    pre_nms_test: PositiveInt
    post_nms_train: PositiveInt
    post_nms_test: PositiveInt
    nms_threshold: Fraction = 0.7
    background_iou: Fraction = 0.3
    foreground_iou: Fraction = 0.7
    batch_per_image: PositiveInt = 256
    positive_fraction: Fraction = 0.5
    head_convs: PositiveInt = 1


class C4RPNConfig(RPNConfig):
    """Proposals from the one feature map of a C4 detector."""

    pre_nms_train: PositiveInt = 12000
    pre_nms_test: PositiveInt = 6000
    post_nms_train: PositiveInt = 2000
    post_nms_test: PositiveInt = 1000


class FPNRPNConfig(RPNConfig):
    """Proposals from the five levels of a feature pyramid."""

    pre_nms_train: PositiveInt = 2000
    pre_nms_test: PositiveInt = 1000
    post_nms_train: PositiveInt = 1000
    post_nms_test: PositiveInt = 1000


class ROIConfig(Section):
    """The second stage.

    Attributes
    ----------
    batch_per_image, positive_fraction
        Proposals sampled for the loss, and the largest part of them that may be objects.
    foreground_iou
        IoU with an object from which a proposal counts as that object.
    score_threshold, nms_threshold, detections_per_image
        What a detection must score to be returned, the IoU above which the lower-scored of two of one class
        goes, and how many an image may have.
    """

    batch_per_image: PositiveInt = 512
    positive_fraction: Fraction = 0.25
    foreground_iou: Fraction = 0.5
    score_threshold: Fraction = 0.05
    nms_threshold: Fraction = 0.5
    detections_per_image: PositiveInt = 100


class _DetectorConfig(Section):
    """Options shared by both detectors.

    Attributes
    ----------
    masks
        Mask R-CNN rather than Faster R-CNN.
    norm
        Normalization of the backbone (and of res5 in a C4 detector). "naiveSyncBN" is the spelling of MoCo's
        recipes: Detectron2 then weighs every GPU's statistics alike; on the torchvision backend it is SyncBN.
    freeze_at
        How many of the backbone's five stages (the stem is the first) are not trained; 0 trains everything.
    anchor_sizes, aspect_ratios
        Square roots of the anchors' areas in pixels, and their height / width.
    mask_dim
        Channels of the mask head.
    """

    masks: bool = False
    norm: Norm = "SyncBN"
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 0
    anchor_sizes: tuple[PositiveFloat, ...] = Field(default=(32, 64, 128, 256, 512), min_length=1)
    aspect_ratios: tuple[PositiveFloat, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)
    roi: ROIConfig = ROIConfig()
    mask_dim: PositiveInt = 256


class C4Config(_DetectorConfig):
    """C4: proposals from the stage of stride 16; the last one, "res5", is the head of every region.

    Attributes
    ----------
    extra_norm
        A normalization after res5 (`Res5ROIHeadsExtraNorm` of MoCo's code).
    """

    name: Literal["c4"]
    extra_norm: bool = True
    rpn: C4RPNConfig = C4RPNConfig()

    @property
    def label(self) -> str:
        """The detector's usual name."""
        return "Mask R-CNN C4" if self.masks else "Faster R-CNN C4"

    @property
    def norms(self) -> frozenset[str]:
        """Every normalization that the detector is built with."""
        return frozenset({self.norm})


class FPNConfig(_DetectorConfig):
    """A feature pyramid; every region has a head of its own.

    It uses the stages of strides 4 to 32 (Lin et al. 2017), or, of a plain vision transformer, on the
    last block's map alone (ViTDet's simple feature pyramid, Li et al. 2022), whose strides are 4 to 32 for
    patches of 8 and 16 pixels, 3.5 to 28 for 14.

    Attributes
    ----------
    fpn_dim, fpn_norm
        Channels of the pyramid and the normalization of its convolutions; "none" is LN, over the channels, in
        a simple feature pyramid, which cannot be without.
    level_norm
        "LN" normalizes the maps that a feature pyramid takes, as ConvNeXt's and Swin's detectors do.
    prefix_tokens
        What becomes of a plain transformer's class token and registers: "keep" lets them take part, "drop"
        runs the patches alone, as ViTDet does. None: dropped where there is only a class token to drop, kept
        in networks with registers or rotary positions; with Detectron2 also kept in networks that its own ViT
        cannot be (CLIP's).
    window_size
        Side in patches of the windows in which the blocks of a plain transformer attend, as ViTDet's 14; 0:
        every block attends to the whole image.
    global_blocks
        Blocks, from 0, that attend to the whole image in spite of windows; None: the last block of each
        quarter, as in ViTDet (2, 5, 8 and 11 of 12).
    relative_positions
        Whether the blocks of a plain transformer add decomposed relative positions (Li et al. 2022, MViTv2),
        which begin at zero, to their attention, as in ViTDet.
    drop_path
        Stochastic depth of a backbone of timm; None: timm's own.
    box_convs, box_fcs, box_conv_dim, box_fc_dim
        The box head: 3x3 convolutions, then linear layers (2 linear layers by default; EqCo's Table 9 has 4
        convolutions and 1).
    mask_convs
        3x3 convolutions of the mask head before its upsampling.
    head_norm
        Normalization of the convolutions of both heads.
    """

    name: Literal["fpn"]
    fpn_dim: PositiveInt = 256
    fpn_norm: NewNorm = "none"
    level_norm: Literal["none", "LN"] = "none"
    prefix_tokens: Literal["keep", "drop"] | None = None
    window_size: NonNegativeInt = 0
    global_blocks: tuple[NonNegativeInt, ...] | None = None
    relative_positions: bool = False
    drop_path: Fraction | None = None
    box_convs: NonNegativeInt = 0
    box_conv_dim: PositiveInt = 256
    box_fcs: PositiveInt = 2
    box_fc_dim: PositiveInt = 1024
    mask_convs: NonNegativeInt = 4
    head_norm: NewNorm = "none"
    rpn: FPNRPNConfig = FPNRPNConfig()

    @property
    def label(self) -> str:
        """The detector's usual name."""
        return "Mask R-CNN FPN" if self.masks else "Faster R-CNN FPN"

    @property
    def norms(self) -> frozenset[str]:
        """Every normalization that the detector is built with."""
        return frozenset({self.norm, self.fpn_norm, self.head_norm})

    @property
    def attends(self) -> bool:
        """Return whether the attention of a plain transformer is another than in pretraining."""
        return self.window_size > 0 or self.relative_positions

    @model_validator(mode="after")
    def _windows_are_of_patches_alone(self) -> "FPNConfig":
        if self.global_blocks is not None and not self.window_size:
            raise ValueError("global_blocks: without windows every block attends to the whole image")
        if self.attends and self.prefix_tokens == "keep":
            raise ValueError("window_size, relative_positions: of patches alone; prefix_tokens: drop")
        return self

    @model_validator(mode="after")
    def _one_size_a_level(self) -> "FPNConfig":
        if len(self.anchor_sizes) != 5:
            raise ValueError(f"anchor_sizes: a pyramid has 5 levels, got {len(self.anchor_sizes)} sizes")
        return self
