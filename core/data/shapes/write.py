"""The procedural data set behind `carryover demo`: shapes on cluttered backgrounds, drawn from a seed.

A class is an outline and a weave (stripes, dots, rings, ...): colors, background, place, size and rotation
are drawn independently of it, so that what self-supervised invariances keep is what the labels ask for.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from numpy.random import Generator
from PIL import Image
from pycocotools import mask as coco_mask

from carryover.configs import UserError
from carryover.configs.files import temporary_name
from carryover.configs.formats import VERSION_KEY, WRITER_KEY, Format
from carryover.core.data.shapes.outlines import OUTLINES, place
from carryover.core.data.shapes.painting import WEAVES, background, paint

CLASSES = tuple(OUTLINES)
DETECTION_CLASSES = CLASSES[:4]
# COCO's own category ids have gaps, and readers that take an id for an index fail on them; so do ours.
CATEGORY_IDS = (3, 7, 12, 31)
SIZE, DETECTION_SIZE = 64, 128

_VERSION = 1
FORMAT = Format("shapes manifest", 2)
_MANIFEST = "shapes.json"


@dataclass(frozen=True)
class ShapesPaths:
    """Locations of the parts of a generated data set.

    Attributes
    ----------
    classification
        ImageFolder with ``train`` and ``val``, 64 px PNG.
    detection
        Root of the 128 px images: Pascal VOC layout in ``VOC2007`` (splits trainval, test), and the same
        images as COCO json in ``annotations/{train,test}.json``.
    """

    classification: Path
    detection: Path

    def __str__(self) -> str:
        return f"classification: {self.classification}\ndetection (VOC and COCO): {self.detection}"


@dataclass(frozen=True)
class _Object:
    """One drawn shape: `polygon` (n, 2) in pixels; `difficult` marks a small one."""

    label: int
    polygon: np.ndarray
    difficult: bool

    @property
    def box(self) -> tuple[float, float, float, float]:
        x1, y1 = self.polygon.min(axis=0)
        x2, y2 = self.polygon.max(axis=0)
        return float(x1), float(y1), float(x2), float(y2)


def write_shapes(
    out: Path, *, seed: int = 0, n_train: int = 2000, n_val: int = 500, n_detection: int = 200
) -> ShapesPaths:
    """Write the data set to `out`, or recognize the one that is there.

    Parameters
    ----------
    n_train, n_val
        Images of the classification set, the classes taking turns.
    n_detection
        Images of the detection set; half are for training, half for testing.

    Raises
    ------
    UserError
        `out` holds something else, or a data set of other arguments.
    """
    arguments = {
        "version": _VERSION,
        "seed": seed,
        "n_train": n_train,
        "n_val": n_val,
        "n_detection": n_detection,
    }
    paths = ShapesPaths(out / "classification", out / "detection")
    if n_train < len(CLASSES) or n_val < len(CLASSES) or n_detection < 4:
        raise UserError(
            f"shapes: needs at least {len(CLASSES)} training and validation images, one a class,"
            f" and 4 detection images; asked for {n_train}, {n_val} and {n_detection}"
        )
    if out.exists():
        _recognize(out, arguments)
        return paths
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(out)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for part, (split, count) in enumerate((("train", n_train), ("val", n_val))):
            _write_classification(temporary / "classification" / split, seed, part, count)
        _write_detection(temporary / "detection", seed, n_detection)
        FORMAT.write(temporary / _MANIFEST, arguments)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return paths


def _recognize(out: Path, arguments: dict[str, int]) -> None:
    manifest = out / _MANIFEST
    if not manifest.is_file():
        raise UserError(f"{out}: exists and is no shapes data set; give a directory that does not exist yet")
    content = FORMAT.read(manifest) or {}
    there = {k: v for k, v in content.items() if k not in (VERSION_KEY, WRITER_KEY)}
    if there != arguments:
        raise UserError(f"{out}: holds the shapes of {there}, not of {arguments}; give another directory")


def _write_classification(folder: Path, seed: int, part: int, count: int) -> None:
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for index in range(count):
        rng = np.random.default_rng([seed, part, index])
        label = index % len(CLASSES)
        canvas = background(rng, SIZE)
        # A small shape of any class may lie about; the one that counts is the large one.
        if rng.random() < 0.5:
            other = int(rng.integers(len(CLASSES)))
            paint(canvas, place(OUTLINES[CLASSES[other]], rng, SIZE, 0.06, 0.10), WEAVES[other], rng)
        polygon = place(OUTLINES[CLASSES[label]], rng, SIZE, 0.28, 0.42)
        paint(canvas, polygon, WEAVES[label], rng)
        image = _finish(canvas, rng)
        image.save(folder / CLASSES[label] / f"{index:06d}.png", compress_level=1)


def _write_detection(root: Path, seed: int, count: int) -> None:
    voc = root / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    (root / "annotations").mkdir()
    splits: dict[str, list[int]] = {"train": [], "test": []}
    coco: dict[str, dict[str, list[Any]]] = {name: _empty_coco() for name in splits}
    for index in range(count):
        split = "train" if index < count // 2 else "test"
        rng = np.random.default_rng([seed, 2, index])
        # The first image of a split shows nothing, and its second a crowd: both occur in real data.
        objects = [] if index % (count // 2) == 0 else list(_objects(rng))
        crowd = _crowd(rng, objects) if index % (count // 2) == 1 else None
        canvas = background(rng, DETECTION_SIZE)
        for thing in (*objects, *(crowd or ())):
            paint(canvas, thing.polygon, WEAVES[thing.label], rng)
        stem = f"{index:06d}"
        _finish(canvas, rng).save(voc / "JPEGImages" / f"{stem}.jpg", quality=95)
        _write_voc_xml(voc / "Annotations" / f"{stem}.xml", stem, [*objects, *(crowd or ())], len(objects))
        _add_coco(coco[split], index, stem, objects, crowd)
        splits[split].append(index)
    for split, voc_name in (("train", "trainval"), ("test", "test")):
        lines = "".join(f"{i:06d}\n" for i in splits[split])
        (voc / "ImageSets" / "Main" / f"{voc_name}.txt").write_text(lines, encoding="utf-8")
        text = json.dumps(coco[split])
        (root / "annotations" / f"{split}.json").write_text(text, encoding="utf-8")


def _objects(rng: Generator) -> Iterator[_Object]:
    """Draw one to four shapes that hardly overlap; one in ten is small, and so difficult."""
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(int(rng.integers(1, 5))):
        small = bool(rng.random() < 0.1)
        low, high = (0.05, 0.07) if small else (0.12, 0.24)
        label = int(rng.integers(len(DETECTION_CLASSES)))
        for _attempt in range(20):
            polygon = place(OUTLINES[DETECTION_CLASSES[label]], rng, DETECTION_SIZE, low, high)
            thing = _Object(label, polygon, small)
            if all(_apart(thing.box, other) for other in taken):
                taken.append(thing.box)
                yield thing
                break


def _crowd(rng: Generator, objects: list[_Object]) -> list[_Object]:
    """Draw many small shapes of one class close together, away from `objects`."""
    label = int(rng.integers(len(DETECTION_CLASSES)))
    outline = OUTLINES[DETECTION_CLASSES[label]]
    things = [_Object(label, place(outline, rng, DETECTION_SIZE, 0.04, 0.06), True) for _ in range(12)]
    return [t for t in things if all(_apart(t.box, o.box) for o in objects)]


def _apart(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def _finish(canvas: np.ndarray, rng: Generator) -> Image.Image:
    noisy = canvas + rng.normal(0.0, rng.uniform(2.0, 8.0), canvas.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _write_voc_xml(path: Path, stem: str, objects: list[_Object], first_crowded: int) -> None:
    root = ET.Element("annotation")
    ET.SubElement(root, "folder").text = "VOC2007"
    ET.SubElement(root, "filename").text = f"{stem}.jpg"
    size = ET.SubElement(root, "size")
    for name, value in (("width", DETECTION_SIZE), ("height", DETECTION_SIZE), ("depth", 3)):
        ET.SubElement(size, name).text = str(value)
    ET.SubElement(root, "segmented").text = "0"
    for i, thing in enumerate(objects):
        node = ET.SubElement(root, "object")
        ET.SubElement(node, "name").text = DETECTION_CLASSES[thing.label]
        ET.SubElement(node, "pose").text = "Unspecified"
        ET.SubElement(node, "truncated").text = "0"
        ET.SubElement(node, "difficult").text = str(int(thing.difficult or i >= first_crowded))
        box = ET.SubElement(node, "bndbox")
        x1, y1, x2, y2 = thing.box
        # Pixels count from 1 in VOC, and both corners belong to the box.
        corners = {
            "xmin": int(x1) + 1,
            "ymin": int(y1) + 1,
            "xmax": min(DETECTION_SIZE, int(np.ceil(x2))),
            "ymax": min(DETECTION_SIZE, int(np.ceil(y2))),
        }
        for name, corner in corners.items():
            ET.SubElement(box, name).text = str(corner)
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding="unicode")


def _empty_coco() -> dict[str, list[Any]]:
    categories = [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, DETECTION_CLASSES)]
    return {"images": [], "annotations": [], "categories": categories}


def _add_coco(
    coco: dict[str, list[Any]], image_id: int, stem: str, objects: list[_Object], crowd: list[_Object] | None
) -> None:
    size = {"width": DETECTION_SIZE, "height": DETECTION_SIZE}
    coco["images"].append({"id": image_id, "file_name": f"{stem}.jpg", **size})
    for thing in objects:
        rles = coco_mask.frPyObjects([thing.polygon.ravel().tolist()], DETECTION_SIZE, DETECTION_SIZE)
        coco["annotations"].append(
            _coco_entry(coco, image_id, thing, [thing.polygon.round(2).ravel().tolist()], rles[0], 0)
        )
    if crowd:
        polygons = [t.polygon.ravel().tolist() for t in crowd]
        merged = coco_mask.merge(coco_mask.frPyObjects(polygons, DETECTION_SIZE, DETECTION_SIZE))
        pixels = coco_mask.decode(merged)
        # An uncompressed RLE, as COCO writes its crowds: runs of 0 and 1 in turn, down the columns.
        flat = pixels.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *edges, flat.size]).tolist()
        segmentation = {"counts": [0, *runs] if flat[0] else runs, "size": [DETECTION_SIZE, DETECTION_SIZE]}
        coco["annotations"].append(_coco_entry(coco, image_id, crowd[0], segmentation, merged, 1))


def _coco_entry(
    coco: dict[str, list[Any]], image_id: int, thing: _Object, segmentation: Any, rle: Any, iscrowd: int
) -> dict[str, Any]:
    if iscrowd:
        box = [float(v) for v in coco_mask.toBbox(rle)]
    else:
        x1, y1, x2, y2 = thing.box
        box = [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
    return {
        "id": image_id * 100 + sum(a["image_id"] == image_id for a in coco["annotations"]) + 1,
        "image_id": image_id,
        "category_id": CATEGORY_IDS[thing.label],
        "segmentation": segmentation,
        "area": float(coco_mask.area(rle)),
        "bbox": box,
        "iscrowd": iscrowd,
    }
