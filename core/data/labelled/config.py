"""Images of a classification evaluation, and their transforms (torch-free)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from carryover.configs import Incidental, Section, UserError
from carryover.core.data.config import (
    AugmentConfig,
    DataConfig,
    EraseConfig,
    Interpolation,
    RandAugment,
    TestViewConfig,
    ViewConfig,
)
from carryover.core.data.defects import Check
from carryover.core.data.digest import Contents, prefixed
from carryover.core.data.named_splits import require_one_rest

Statistics = tuple[float, float, float]


class ClassifyData(DataConfig):
    """A labeled data set with a split to train on and a split to test on.

    Attributes
    ----------
    split, test_split
        Names of the two splits in the layout (`list_file` and `test_list_file` for kind ``list``).
    selection_split
        A third split, on which what a recipe chooses (rates, an epoch, a cost) is chosen; None: on a held-out
        part of the labeled training images, which are then not all trained on while choosing.
    max_unreadable
        No unreadable image is tolerated unless the recipe says so: each one changes what is measured.
    test_in_train
        What is done about test images that are training images too, by the content of their files.
    two_labels, duplicate_image
        What is done about a file that is in one split twice: under two classes, or twice in one class.
    """

    test_split: str = "val"
    selection_split: str | None = None
    test_list_file: Annotated[Path | None, Incidental] = None
    max_unreadable: Annotated[NonNegativeInt, Incidental] = 0
    test_in_train: Check = "fatal"
    two_labels: Check = "keep"
    duplicate_image: Check = "keep"

    @property
    def train(self) -> DataConfig:
        """The training split as a data set of its own."""
        return self._as_data_set()

    @property
    def test(self) -> DataConfig:
        """The test split as a data set of its own, always whole."""
        return self._as_data_set(split=self.test_split, list_file=self.test_list_file, subset=None)

    @property
    def selection(self) -> DataConfig | None:
        """The split to choose on as a data set of its own; None where there is none."""
        if self.selection_split is None:
            return None
        return self._as_data_set(split=self.selection_split, subset=None)

    def chosen_on(self, held_out: float) -> str:
        """Return what a result is selected on: the split, or that part of the labeled training images."""
        if self.selection_split is not None:
            return f"split {self.selection_split}"
        return f"held-out {100 * held_out:g} % of the labelled training images"

    @property
    def test_label(self) -> str:
        """The split the numbers are measured on."""
        return self.test_split

    def contents(self) -> Contents:
        """List the files of both splits; see `core.data.digest`."""
        found = prefixed(self.train.contents(), "train") + prefixed(self.test.contents(), "test")
        return found if self.selection is None else found + prefixed(self.selection.contents(), "selection")

    @model_validator(mode="after")
    def _two_splits(self) -> "ClassifyData":
        if (self.test_list_file is not None) != (self.kind == "list"):
            raise ValueError("test_list_file belongs to kind: list, and only to it")
        same = self.list_file == self.test_list_file if self.kind == "list" else self.split == self.test_split
        if same:
            raise ValueError("the split to test on is the split to train on")
        chosen = [] if self.selection_split is None else [self.selection_split]
        require_one_rest(self.splits, [self.split, self.test_split, *chosen])
        if self.selection_split is not None:
            if self.kind == "list":
                raise ValueError("selection_split: kind: list has two lists; kind: csv has any number")
            if self.selection_split in (self.split, self.test_split):
                raise ValueError("selection_split is another split than those to train and to test on")
        # Builds (and so checks) the other splits' own sections: cifar10 has no "val", for example.
        _ = self.test, self.selection
        return self

    def _as_data_set(self, **changed: object) -> DataConfig:
        own = {name: getattr(self, name) for name in DataConfig.model_fields}
        return DataConfig.model_validate(own | changed)


class ImageConfig(Section):
    """Transforms: random resized crop and flip in training, resize and center crop in testing.

    Attributes
    ----------
    size, resize
        Side of the crop, and the shorter side that test images are resized to first, in pixels.
    whole
        Test images are shown whole, resized to `size` x `size` whatever their shape; not their center alone.
    scale, ratio, flip
        Area and aspect ratio of the training crop, probability of the horizontal flip.
    pixel_mean, pixel_std
        Normalization of RGB in [0, 1]; None: the checkpoint's own. Stated ones must be the checkpoint's.
    input_size
        "checkpoint": `size` must be the side of the crops the checkpoint was trained on; "any": it need not.
    interpolation
        Of every resizing, in training and testing.
    rand_augment, erase
        timm's RandAugment and random erasing of the training view (see `ViewConfig`).
    """

    size: PositiveInt = 224
    resize: PositiveInt = 256
    whole: bool = False
    scale: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0)
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    pixel_mean: Statistics | None = None
    pixel_std: Statistics | None = None
    input_size: Literal["checkpoint", "any"] = "checkpoint"
    interpolation: Interpolation = "bilinear"
    rand_augment: RandAugment | None = None
    erase: EraseConfig | None = None

    @model_validator(mode="after")
    def _sections_are_valid(self) -> "ImageConfig":
        if (self.pixel_mean is None) != (self.pixel_std is None):
            raise ValueError("pixel_mean and pixel_std are stated together, or neither")
        _ = self.augment((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        return self

    def augment(self, mean: Statistics, std: Statistics) -> AugmentConfig:
        """Return the one random view of training and the view of testing, normalized by `mean`, `std`."""
        view = ViewConfig(
            size=self.size,
            scale=self.scale,
            ratio=self.ratio,
            flip=self.flip,
            jitter=None,
            grayscale=0.0,
            blur=None,
            interpolation=self.interpolation,
            rand_augment=self.rand_augment,
            erase=self.erase,
        )
        test = TestViewConfig(
            resize=self.resize, size=self.size, whole=self.whole, interpolation=self.interpolation
        )
        return AugmentConfig(views="single", view=view, test=test, mean=mean, std=std)


def check_data(data: ClassifyData) -> None:
    """Refuse a data section whose folder or lists are not there, without importing torch.

    Raises UserError naming the path, or the key that is not set.
    """
    if data.root is None:
        raise UserError(
            "data.root is not set: set it to the directory of the data set (data.root=/path/to/it)"
        )
    root = data.root.expanduser()
    if not root.is_dir() and not data.download:
        raise UserError(f"data.root: {root}: no such folder")
    for key, file in (("list_file", data.list_file), ("test_list_file", data.test_list_file)):
        if file is not None and not file.expanduser().is_file() and not (root / file).is_file():
            raise UserError(f"data.{key}: {file}: no such file, neither as written nor under {root}")
    if data.kind == "inaturalist":
        for split in (data.split, data.test_split):
            if not (root / f"{split}.json").is_file():
                raise UserError(
                    f"{root / f'{split}.json'}: no such file; expected iNaturalist's own annotations"
                )
    if data.kind == "imagefolder" and not data.splits:
        named = [("split", data.split), ("test_split", data.test_split)]
        named += [("selection_split", data.selection_split)] if data.selection_split else []
        for key, split in named:
            if not (root / split).is_dir():
                found = sorted(p.name for p in root.iterdir() if p.is_dir())
                listed = f"; {root} contains {', '.join(found[:8])}" if found else ""
                if len(found) > 1 and not any((root / other).is_dir() for _, other in named):
                    listed += "; if these are the classes: 'data.splits={test: 0.2}' data.test_split=test"
                raise UserError(f"data.{key}: {root / split}: no such folder{listed}")
