"""Validate a data set before training; implements `carryover data check KIND ROOT`."""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from carryover.configs.errors import UserError
from carryover.core.data.check_imagefolder import check_imagefolder
from carryover.core.data.defects import Defect, DefectPolicy
from carryover.core.data.leakage import repeated_images
from carryover.core.data.objects.across import compare_splits
from carryover.core.data.objects.boxes import scan_boxes
from carryover.core.data.objects.coco import load_coco_json, scan_coco
from carryover.core.data.objects.config import BoxesData
from carryover.core.data.objects.dataset import DetectionDataset
from carryover.core.data.objects.splits import difference
from carryover.core.data.objects.voc import scan_voc_folder, voc_folders
from carryover.core.data.voc_lists import LISTINGS, listed, side_by_side

log = logging.getLogger(__name__)

KINDS = ("imagefolder", "voc", "coco", "boxes")


def check(kind: str, root: Path, classes: Sequence[str] | None = None) -> list[Defect]:
    """Return every defect of a data set, with what the default policy would do about each.

    Every image is decoded to its last pixel. What was found is logged: images, objects, classes.

    Parameters
    ----------
    kind
        ``voc``: `root` as for `read_voc`; every list of every VOC folder is checked. ``coco``: `root` holds
        ``annotations/*.json``, or is one such file; the images are looked for where COCO, Roboflow and CVAT
        put them. ``imagefolder``: ``root/train`` and ``root/val``, or class folders in `root` itself.
        ``boxes``: images and XML, YOLO's text or a csv, wherever they lie in `root`.
    classes
        The class names that are allowed (``voc`` and ``coco``); by default those that occur.

    Raises UserError where `root` holds no data set of this kind.
    """
    root = root.expanduser()
    if kind not in KINDS:
        raise UserError(f"data check {kind}: unknown kind; there are: {', '.join(KINDS)}, masks")
    if not root.exists():
        raise UserError(f"{root}: no such folder")
    if kind == "imagefolder":
        return check_imagefolder(root)
    if kind == "boxes":
        return check_boxes(BoxesData.model_validate({"kind": "boxes", "root": root, "classes": classes}))
    return _check_voc(root, classes) if kind == "voc" else _check_coco(root, classes)


def check_boxes(data: BoxesData, splits: bool = False) -> list[Defect]:
    """Return every defect of images with XML, YOLO's text or a csv: of the splits, or of all images."""
    parts = (data.train, (data.test,)) if splits else ((),)
    scanned = scan_boxes(data, parts)
    for dataset, _ in scanned:
        _log_contents(dataset)
    defects = [defect for _, found in scanned for defect in found]
    if not splits:
        # Splits that are drawn from these images could hold one on both sides.
        (dataset, _), *_ = scanned
        defects += _spellings(data.root or Path(), dataset.classes)
        defects += repeated_images([i.path for i in dataset.images], [""] * len(dataset.images))
    elif all(dataset.images for dataset, _ in scanned):
        defects += compare_splits(scanned[0][0], scanned[1][0], data.defects, all_wanted=True)
    return defects


def _check_voc(root: Path, classes: Sequence[str] | None) -> list[Defect]:
    defects: list[Defect] = []
    beside: dict[str, DetectionDataset] = {}
    for folder in voc_folders(root):
        dataset, found = scan_voc_folder(folder, classes, DefectPolicy())
        defects += [*found, *_in_two_lists(folder), *_spellings(folder, dataset.classes)]
        _log_contents(dataset)
        if folder in side_by_side(root):
            beside[folder.name] = dataset
    return defects + _compare(beside)


def _spellings(folder: Path, classes: Sequence[str]) -> list[Defect]:
    """Return a defect for classes whose names differ in capitals only: a recipe knows one of them."""
    spelled: dict[str, list[str]] = {}
    for name in classes:
        spelled.setdefault(name.casefold(), []).append(name)
    return [
        DefectPolicy().defect(folder, "unknown_class", f"{names} differ in capitals only")
        for names in spelled.values()
        if len(names) > 1
    ]


def _in_two_lists(folder: Path) -> list[Defect]:
    """Return a defect for every list to test on that names images of a list to train on."""
    ids = {p.stem: {line.id for line in listed(p)} for p in sorted((folder / LISTINGS).glob("*.txt"))}
    defects = []
    for taught, tested in (("train", "val"), ("train", "test"), ("trainval", "test")):
        shared = sorted(ids.get(taught, set()) & ids.get(tested, set()))
        if shared:
            message = f"{len(shared)} of its images are in {taught}.txt too (for example {shared[0]})"
            file = folder / LISTINGS / f"{tested}.txt"
            defects.append(DefectPolicy().defect(file, "test_in_train", message))
    return defects


def _compare(splits: Mapping[str, DetectionDataset]) -> list[Defect]:
    """Compare splits that are called train... with those that are called val..., valid..., test...."""
    defects: list[Defect] = []
    taught = {name: dataset for name, dataset in splits.items() if "train" in name}
    for (name, train), (other, test) in product(taught.items(), splits.items()):
        if other in taught or not re.search("val|test", other) or not train.images or not test.images:
            continue
        if train.classes != test.classes:
            message = f"{other} has other classes than {name}: {difference(train.classes, test.classes)}"
            defects.append(DefectPolicy().defect(Path(other), "class_mismatch", message))
        else:
            defects += compare_splits(train, test, DefectPolicy())
    return defects


def _check_coco(root: Path, classes: Sequence[str] | None) -> list[Defect]:
    files = [root] if root.is_file() else _annotation_files(root)
    defects: list[Defect] = []
    splits: dict[str, DetectionDataset] = {}
    # Bad masks matter to a recipe with masks, which data check does not know: they are told.
    policy = DefectPolicy(lost_masks="keep")
    checked = 0
    for file in files:
        other = None if len(files) == 1 else _other_annotations(file)
        if other is not None:
            log.info("%s: %s, so not a file of instances; passed over", file, other)
            continue
        checked += 1
        try:
            content = load_coco_json(file)
        except UserError as error:
            defects.append(Defect(file, "unreadable_index", str(error).removeprefix(f"{file}: "), "fatal"))
            continue
        names = [i["file_name"] for i in content["images"] if isinstance(i, dict) and "file_name" in i]
        dataset, found = scan_coco(file, _image_root(file, names), policy, classes)
        defects += found
        _log_contents(dataset)
        splits[_split_name(file)] = dataset
    if not checked:
        raise UserError(f"{root}: none of its {len(files)} annotation files holds instances (boxes)")
    return defects + _compare(splits)


def _split_name(file: Path) -> str:
    """Return what a file of annotations is of: its own name, or its folder's where that says it."""
    return file.parent.name if file.stem.startswith("_annotations") else file.stem


def _other_annotations(file: Path) -> str | None:
    """Return what a file of a COCO folder contains instead of instances; None for instances."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return "no object of JSON"
    annotations = content.get("annotations")
    if "images" in content and "annotations" not in content:
        return "a list of images without annotations"
    if not isinstance(annotations, list) or "images" not in content:
        return None
    first = next((a for a in annotations if isinstance(a, dict)), {})
    if "caption" in first:
        return "captions"
    if "segments_info" in first:
        return "panoptic segments"
    if not content.get("categories"):
        return "no categories"
    return None


def _annotation_files(root: Path) -> list[Path]:
    files = (
        sorted((root / "annotations").glob("*.json"))
        or sorted([*root.glob("*.json"), *root.glob("*/_annotations.coco.json")])
        or sorted(root.glob("*/annotations/*.json"))
    )
    if not files:
        raise UserError(f"{root}: expected COCO's annotations/*.json in it")
    return files


def _image_root(file: Path, names: Sequence[str]) -> Path:
    """Return the folder, of those in use, that holds the most of the first images."""
    top = file.parent.parent if file.parent.name == "annotations" else file.parent
    split = file.stem.rpartition("_")[2]
    candidates = [top / split, top / "images" / split, top / "images", top / "JPEGImages", top, file.parent]
    found = max(candidates, key=lambda folder: sum((folder / name).is_file() for name in names[:50]))
    if names and not (found / names[0]).is_file():
        # Beside annotations of another layout, as VOC's JPEGImages of some year.
        below = next((p for p in sorted(top.rglob(Path(names[0]).name)) if p.is_file()), None)
        if below is not None:
            return below.parents[len(Path(names[0]).parts) - 1]
    return found


def _log_contents(dataset: DetectionDataset) -> None:
    counts = Counter(dataset.classes[label] for i in dataset.images for label in i.annotation.labels)
    flagged = sum(int((i.annotation.difficult | i.annotation.iscrowd).sum()) for i in dataset.images)
    empty = sum(len(i.annotation) == 0 for i in dataset.images)
    log.info(
        "%s: %d usable images (%d without objects), %d objects (%d difficult or crowd) of %d classes: %s",
        dataset.name,
        len(dataset.images),
        empty,
        counts.total(),
        flagged,
        len(dataset.classes),
        ", ".join(f"{name} {counts[name]}" for name in dataset.classes),
    )
