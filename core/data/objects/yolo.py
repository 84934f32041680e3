"""Read one image's boxes from YOLO's text: class, center and size, as shares of the image (torch-free)."""

from pathlib import Path

import yaml

from carryover.configs.counted import counted
from carryover.core.data.names import as_number, read_text
from carryover.core.data.objects.voc_xml import VocObject, VocRecord, opened
from carryover.core.data.pictures import Orientation

NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "data.yaml", "dataset.yaml")
"""The files that name the classes: LabelImg's, darknet's, Roboflow's, Ultralytics'."""


def class_names(folders: tuple[Path, ...]) -> tuple[list[str], Path | None]:
    """Return the classes by their numbers, and the file that says so; [] where no file does."""
    for folder in folders:
        for file in (folder / name for name in NAME_FILES):
            if file.is_file() and (names := _names_in(file)):
                return names, file
    return [], None


def _names_in(file: Path) -> list[str]:
    text = read_text(file)
    if file.suffix != ".yaml":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        names = yaml.safe_load(text).get("names", [])
    except (yaml.YAMLError, AttributeError):
        return []
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)]
    return [str(name) for name in names]


def read_yolo(
    image_id: str, image: Path, text: Path, names: list[str], orientation: Orientation = "exif"
) -> VocRecord:
    """Read an image's header and its file of boxes; edges are in pixels, where each box begins and ends.

    A polygon (Ultralytics' segmentation: more than four numbers) counts as the box around it.
    """
    header, problems = opened(image, orientation)
    faults: list[tuple[str, Path, str]] = []
    objects: list[VocObject] = []
    try:
        lines = read_text(text).splitlines()
    except OSError:
        lines = []
        problems.append(("missing_annotation", text, f"no text of boxes for image {image_id}"))
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or header is None:
            continue
        found = _object(number, words, names, header.size)
        if isinstance(found, str):
            faults.append(("malformed_object", text, f"line {number}: {found}"))
        else:
            objects.append(found)
    return VocRecord(image_id, image, text, header, None, tuple(objects), tuple(problems), tuple(faults))


def _object(number: int, words: list[str], names: list[str], size: tuple[int, int]) -> VocObject | str:
    numbers = [as_number(word) for word in words[1:]]
    if not words[0].isdecimal() or len(numbers) < 4 or None in numbers or len(numbers) == 5:
        return f"{' '.join(words[:6])!r}: expected a class's number and x y width height of its box"
    shares = [n for n in numbers if n is not None]
    if max(shares) > 1.5:
        return f"{' '.join(words[:6])!r}: YOLO's numbers are shares of the image's width and height, 0 to 1"
    index = int(words[0])
    if index >= len(names):
        return f"class {index}, but {counted(names, 'class is', 'classes are')} named"
    if len(shares) == 4:
        x, y, w, h = shares
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    else:
        box = (min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2]))
    edges = (box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1])
    return VocObject(number, names[index], edges, difficult=False, place=f"line {number}")
