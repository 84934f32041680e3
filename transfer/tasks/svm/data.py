"""Both splits of VOC for the SVMs: which classes each image shows, and the images alone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from carryover.configs import UserError
from carryover.core.data.objects.dataset import DetectionDataset
from carryover.core.data.objects.voc import VOC_CLASSES, read_voc
from carryover.transfer.tasks.svm.config import VocImages

if TYPE_CHECKING:
    from carryover.core.data.prepared import Dataset


@dataclass(frozen=True)
class VocSplits:
    """Training and test images with their objects."""

    train: DetectionDataset
    test: DetectionDataset


def read_splits(data: VocImages) -> VocSplits:
    """Read both splits; raises UserError for a root, list or annotation that is not as it should be."""
    if data.root is None:
        raise UserError(
            "data.root is not set: set it to the directory of the VOC data set (data.root=/path/to/VOCdevkit)"
        )
    root = data.root.expanduser()
    if not root.is_dir():
        raise UserError(f"data.root: {root}: no such folder")
    classes = data.classes or VOC_CLASSES
    read = []
    for named in (data.train, data.test):
        year, _, split = named.rpartition("/")
        if year and not year.isdecimal():
            raise UserError(f"data: split '{named}' must be year/name (2007/trainval) or a name alone")
        dataset, _ = read_voc(
            root, [(int(year) if year else None, split)], classes, orientation=data.orientation
        )
        read.append(dataset)
    return VocSplits(*read)


def as_images(dataset: DetectionDataset) -> "Dataset":
    """Return the pictures alone: labels of several classes at once are no class index."""
    from carryover.core.data.datasets import FileImages, Paths

    root = dataset.images[0].path.parent
    paths = Paths.of(root, [str(image.path) for image in dataset.images])
    orientation = dataset.images[0].orientation
    return FileImages(paths, [0] * len(dataset.images), ["image"], orientation=orientation)
