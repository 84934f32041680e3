"""Check class folders of images: ImageNet's layout, torchvision's ImageFolder."""

import logging
from collections import defaultdict
from pathlib import Path

from carryover.configs.errors import UserError
from carryover.configs.files import sha256_file
from carryover.core.data.defects import Defect
from carryover.core.data.layouts import NO_CLASSES
from carryover.core.data.names import is_hidden
from carryover.core.data.pictures import IMAGE_SUFFIXES, in_parallel, picture_errors

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


def check_imagefolder(root: Path) -> list[Defect]:
    """Return the defects of ``root/{train,val,test}/CLASS/...``, or of ``root/CLASS/...``.

    Unreadable images (``drop``: pretraining skips and counts them), classes without images and classes that
    are not in every split (fatal), and images that are byte for byte the same (``keep``: told, not touched;
    between splits they leak test images into training).

    Raises UserError where `root` has no class folders.
    """
    if not root.is_dir():
        raise UserError(f"{root}: not a folder; expected train/ and val/, or one folder a class")
    splits = {name: root / name for name in SPLITS if (root / name).is_dir()} or {"": root}
    images = {folder: _images_by_class(folder) for folder in splits.values()}
    if "test" in splits and not images[splits["test"]]:
        log.info("%s: no class folders, so images without labels; passed over", splits["test"])
        del images[splits["test"]]
    if not images:
        raise UserError(f"{root}: expected train/ and val/, or one folder a class")
    for folder, classes in images.items():
        if not classes:
            raise UserError(f"{folder}: {NO_CLASSES}")
        log.info("%s: %d images, %d classes", folder, sum(map(len, classes.values())), len(classes))
    defects = _class_mismatches(images)
    for folder, classes in images.items():
        for name, paths in classes.items():
            if not paths:
                message = f"class '{name}' has no image"
                defects.append(Defect(folder / name, "empty_class", message, "fatal"))
    paths = [path for classes in images.values() for group in classes.values() for path in group]
    errors = picture_errors(paths, str(root))
    defects += [Defect(p, "unreadable_image", f"cannot be decoded ({e})", "drop") for p, e in errors.items()]
    return defects + _duplicates(paths)


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    return {
        entry.name: sorted(
            path
            for path in entry.rglob("*")
            if path.suffix.lower() in IMAGE_SUFFIXES
            and not any(is_hidden(part) for part in path.relative_to(entry).parts)
        )
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not is_hidden(entry.name)
    }


def _class_mismatches(images: dict[Path, dict[str, list[Path]]]) -> list[Defect]:
    everything = sorted({name for classes in images.values() for name in classes})
    return [
        Defect(folder, "class_mismatch", f"class '{name}' is missing here, but is in another split", "fatal")
        for folder, classes in images.items()
        for name in everything
        if name not in classes
    ]


def _duplicates(paths: list[Path]) -> list[Defect]:
    """Return a defect for every file that repeats an earlier one; only files of one size are compared."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path, size in zip(paths, in_parallel(lambda path: path.stat().st_size, paths), strict=True):
        by_size[size].append(path)
    suspects = [path for group in by_size.values() if len(group) > 1 for path in group]
    first: dict[str, Path] = {}
    defects = []
    for path, digest in zip(suspects, in_parallel(sha256_file, suspects), strict=True):
        original = first.setdefault(digest, path)
        if original != path:
            defects.append(Defect(path, "duplicate_image", f"the same file as {original}", "keep"))
    return defects
