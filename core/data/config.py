"""Images of a pretraining and their random views: DataConfig and AugmentConfig."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from carryover.configs import Incidental, Section
from carryover.core.data.digest import Contents
from carryover.core.data.named_splits import Splits
from carryover.core.data.pictures import Orientation
from carryover.core.data.readers import READERS

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]
Interpolation = Literal["bilinear", "bicubic"]
_OPTIONS = r"m\d+|n\d+|p\d+(\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3aw|3a)"
RandAugment = Annotated[str, Field(pattern=rf"^rand(-({_OPTIONS}))*$")]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _known(kind: str) -> str:
    if kind not in READERS:
        raise ValueError(READERS.unknown(kind))
    return kind


Kind = Annotated[str, AfterValidator(_known)]


class SubsetConfig(Section):
    """A part of a data set, drawn by a seed. Subsets of one seed are nested: the 10k lies in the 100k.

    Attributes
    ----------
    count
        Images kept.
    stratified
        Draw the same number from every class, up to one. Off by default: "we randomly sample (without using
        any image label)" (sqrtkl 4.3).
    """

    count: PositiveInt
    seed: NonNegativeInt = 0
    stratified: bool = False


class DataConfig(Section):
    """A data set: its layout, where it lies, and what is done about images that cannot be read.

    Attributes
    ----------
    kind
        ``imagefolder``: one folder a class, under root/<split> or, for train, root itself (ImageNet); without
        class folders the images have no labels. ``cifar10``, ``cifar100``: torchvision's pickled batches
        under root.
        ``tiny_imagenet``: train/<wnid>/images, val/val_annotations.txt. ``list``: `list_file`, one
        ``path[ label]`` a line, relative to root. ``csv``: images and a table of their classes.
        ``inaturalist``: <split>.json beside the images. Others by the readers of installed packages
        (`core.data.readers`).
    name
        What records call the data set ("imagenet", "IN-10k"); when empty, see `core.data.called`.
    root
        Folder of the data set.
    split
        train, val, test: the folder or file of that name in the layout.
    download
        Fetch CIFAR when it is not under root (no other kind is ever fetched).
    list_file
        The image list of kind ``list``.
    images, annotations, columns
        Of kind ``csv``, below the root: the folder of the images (None: the root), the table (None: all of
        the root's; of this name in the folder of every split, if it is not at the root), and the titles of
        its columns (image, label, split) where they are unusual.
    splits
        Of the kinds ``csv`` and ``imagefolder`` (class folders in the root itself), by name, which images a
        split has: a list of names (.txt, .csv), a folder, a value of the table's column for splits; or a
        share of every class, drawn by `splits_seed`. Where shares are drawn, another split is all that is
        left.
    subset
        Train on a part of the images only.
    resize
        Shorter side to which every image is resized on reading, then cropped centrally to a square;
        None: images stay as they are.
    orientation
        Whether the EXIF flag of a picture is applied ("exif"), or pixels are taken as stored.
    check
        What is tried before training: ``header`` opens every file, ``full`` decodes it, ``none`` trusts.
    max_unreadable
        Unreadable images tolerated, each shown as the next readable one; one more stops the run.
    cache_gib
        A data set whose images all have one size, and which decoded is no larger than this, is kept decoded.
    """

    kind: Kind = "imagefolder"
    name: str = ""
    root: Annotated[Path | None, Incidental] = None
    split: str = "train"
    download: Annotated[bool, Incidental] = False
    list_file: Annotated[Path | None, Incidental] = None
    images: Path | None = None
    annotations: Path | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    splits: Splits
    splits_seed: NonNegativeInt = 0
    subset: SubsetConfig | None = None
    resize: PositiveInt | None = None
    orientation: Orientation = "exif"
    check: Annotated[Literal["header", "full", "none"], Incidental] = "header"
    max_unreadable: Annotated[NonNegativeInt, Incidental] = 10
    cache_gib: Annotated[float, Field(ge=0), Incidental] = 2.0

    @model_validator(mode="before")
    @classmethod
    def _title_is_the_name(cls, given: Any) -> Any:
        """Take ``title``, as the sections of detection and segmentation call it, for the name."""
        if isinstance(given, Mapping) and "title" in given:
            return {**{k: v for k, v in given.items() if k != "title"}, "name": given["title"]}
        return given

    @property
    def title(self) -> str:
        """Return the name of this data set in records."""
        return self.name or self.kind

    def contents(self) -> Contents:
        """List the files of the split; see `core.data.digest`."""
        assert self.root is not None
        return READERS.get(self.kind).contents(self, self.root.expanduser())

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> "DataConfig":
        if (self.list_file is not None) != (self.kind == "list"):
            raise ValueError(f"list_file belongs to kind: list, and only to it (kind is {self.kind})")
        if self.download and self.kind not in ("cifar10", "cifar100"):
            raise ValueError(f"download: true is for cifar10 and cifar100 only (kind is {self.kind})")
        of_csv = {"images": self.images, "annotations": self.annotations, "columns": self.columns}
        given = [key for key, value in of_csv.items() if value]
        if self.kind != "csv" and given:
            raise ValueError(f"{given[0]} belongs to kind: csv (kind is {self.kind})")
        if self.splits and self.kind not in ("csv", "imagefolder"):
            raise ValueError(f"splits belongs to the kinds csv and imagefolder (kind is {self.kind})")
        allowed = READERS.get(self.kind).splits
        if allowed and self.split not in allowed:
            raise ValueError(f"{self.kind} has the splits {' and '.join(allowed)}, not {self.split}")
        return self


class JitterConfig(Section):
    """Color jitter, its four operations in random order. Strengths as in torchvision's ColorJitter."""

    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    p: Probability = 0.8


class BlurConfig(Section):
    """Gaussian blur: sigma in pixels of the finished view, drawn uniformly."""

    sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    p: Probability = 0.5

    @model_validator(mode="after")
    def _ordered(self) -> "BlurConfig":
        if self.sigma[0] > self.sigma[1]:
            raise ValueError(f"sigma {self.sigma} must be (smallest, largest)")
        return self

    @property
    def radius(self) -> int:
        """Half-width of the kernel: three times the largest sigma, where a Gaussian has ended."""
        return int(-(-3 * self.sigma[1] // 1))


class EraseConfig(Section):
    """Random erasing (Zhong et al. 2020) by timm: rectangles of the normalized view are overwritten.

    Attributes
    ----------
    p
        Probability that an image is erased.
    mode
        With normal noise for every pixel, with one color of normal noise ("rand"), or with zeros ("const").
    count
        At most so many rectangles, a number drawn for each image.
    """

    p: Probability = 0.25
    mode: Literal["pixel", "rand", "const"] = "pixel"
    count: PositiveInt = 1


class ViewConfig(Section):
    """One random view of an image; the defaults are MoCo v2's.

    Attributes
    ----------
    size
        Side of the view in pixels.
    scale
        Area of the random crop as a fraction of the image; None: no random crop, the shorter side is
        resized to `size` and the center taken.
    ratio
        Aspect ratio of the random crop (width / height), log-uniform.
    flip, grayscale, solarize
        Probabilities of a horizontal flip, of losing color, and of inverting the pixels above one half.
    jitter, blur
        None: never.
    interpolation
        Of the crop, with antialiasing; of RandAugment's geometric operations too.
    rand_augment
        timm's RandAugment by its own string ("rand-m9-mstd0.5-inc1"), after crop and flip; None: never.
    erase
        Random erasing of the finished view; None: never.
    """

    size: PositiveInt = 224
    scale: tuple[PositiveFloat, PositiveFloat] | None = (0.2, 1.0)
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    flip: Probability = 0.5
    jitter: JitterConfig | None = JitterConfig()
    grayscale: Probability = 0.2
    blur: BlurConfig | None = BlurConfig()
    solarize: Probability = 0.0
    interpolation: Interpolation = "bilinear"
    rand_augment: RandAugment | None = None
    erase: EraseConfig | None = None

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> "ViewConfig":
        if self.scale is not None and not self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {self.scale} must be (smallest, largest), at most 1")
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"ratio {self.ratio} must be (smallest, largest)")
        if self.blur is not None and self.blur.radius >= self.size:
            raise ValueError(f"blur of sigma {self.blur.sigma[1]} is wider than a view of {self.size} pixels")
        return self


class LocalConfig(Section):
    """The small crops of multi-crop (unigrad_arxiv 5.2: 6 of 96 pixels, scale (0.05, 0.4))."""

    count: PositiveInt = 6
    view: ViewConfig = ViewConfig(size=96, scale=(0.05, 0.4))


class CutMixConfig(Section):
    """CutMix (Yun et al. 2019): patches of the shuffled batch; area ratio from Beta(alpha, alpha)."""

    alpha: PositiveFloat = 1.0


class TestViewConfig(Section):
    """The view without randomness: shorter side to `resize`, then the center of `size` pixels.

    Attributes
    ----------
    whole
        In place of the center the whole image, resized once more to `size` x `size` whatever its shape.
    interpolation
        Of every resizing, with antialiasing.
    """

    # pytest takes classes called Test... for tests.
    __test__: ClassVar[bool] = False

    resize: PositiveInt
    size: PositiveInt
    whole: bool = False
    interpolation: Interpolation = "bilinear"

    @model_validator(mode="after")
    def _crop_fits(self) -> "TestViewConfig":
        if self.size > self.resize and not self.whole:
            raise ValueError(
                f"a center crop of {self.size} does not fit into images resized to {self.resize}"
            )
        return self


class AugmentConfig(Section):
    """The views of one image that a method sees in one step.

    Attributes
    ----------
    views
        ``single``: one of `view`. ``two``: one of `view`, one of `second` (as `view` when None; give it for
        asymmetric augmentation). ``multicrop``: the same two, and `local.count` of `local.view`.
    cutmix
        Mixed images beside the views, made by the method (see `pretrain.cutmix`).
    test
        The view of evaluation and feature passes; None: the center 7/8 of the image at `view.size` (Resize
        256, CenterCrop 224), the whole image for views of at most 96 pixels.
    mean, std
        Normalization of RGB in [0, 1].
    backend
        Who makes the views. ``loader``: image by image, in the loader's processes. ``batched``: whole batches
        of a decoded data set at once, on the CPU or the GPU. ``auto``: batched where the data set is cached
        and views are small. Both draw the same parameters for the same sample.
    """

    views: Literal["single", "two", "multicrop"] = "two"
    view: ViewConfig = ViewConfig()
    second: ViewConfig | None = None
    local: LocalConfig | None = None
    cutmix: CutMixConfig | None = None
    test: TestViewConfig | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD
    backend: Annotated[Literal["auto", "loader", "batched"], Incidental] = "auto"

    @property
    def view_list(self) -> tuple[ViewConfig, ...]:
        """The views in the order in which a batch holds them: global ones first."""
        if self.views == "single":
            return (self.view,)
        pair = (self.view, self.second or self.view)
        return pair + (self.local.view,) * self.local.count if self.local else pair

    @property
    def test_view(self) -> TestViewConfig:
        """The view of evaluation and feature passes."""
        if self.test is not None:
            return self.test
        size = self.view.size
        return TestViewConfig(resize=size if size <= 96 else round(size * 8 / 7), size=size)

    @model_validator(mode="after")
    def _sections_fit_the_views(self) -> "AugmentConfig":
        if self.second is not None and self.views == "single":
            raise ValueError("second: belongs to views: two or multicrop")
        if (self.local is not None) != (self.views == "multicrop"):
            raise ValueError(f"local: belongs to views: multicrop, and only to it (views is {self.views})")
        if self.backend == "batched" and any(view.rand_augment for view in self.view_list):
            raise ValueError("rand_augment works image by image: backend: loader, or auto")
        return self
