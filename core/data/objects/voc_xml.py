"""One image of a Pascal VOC folder, as its files state it: image header and XML, nothing judged yet."""

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree

from carryover.core.data.names import as_size, flag
from carryover.core.data.pictures import Header, Orientation, read_header
from carryover.core.data.voc_lists import VocFiles

EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocObject:
    """One ``<object>``; its number counts from 1, its edges are 1-based with both ends inside the box.

    Of other files: a line of a text or a table, whose edges are as it states them.

    Attributes
    ----------
    place
        Where it stands, for messages; "" for the object of that number.
    crowd
        One box around several objects.
    """

    number: int
    name: str
    edges: tuple[float, float, float, float]
    difficult: bool
    place: str = ""
    crowd: bool = False


@dataclass(frozen=True)
class VocRecord:
    """One image as found on disk, before any policy is applied.

    Attributes
    ----------
    header, stated_size
        What the image file says, and its (width, height) as the XML has it; None where either says nothing.
    image_problems, object_problems
        (kind of defect, file, message): what keeps the image from being used, and what only an object.
    """

    id: str
    image: Path
    xml: Path
    header: Header | None = None
    stated_size: tuple[int, int] | None = None
    objects: tuple[VocObject, ...] = ()
    image_problems: tuple[tuple[str, Path, str], ...] = ()
    object_problems: tuple[tuple[str, Path, str], ...] = ()


def opened(image: Path, orientation: Orientation) -> tuple[Header | None, list[tuple[str, Path, str]]]:
    """Return an image's header, or what is wrong with the file."""
    try:
        return read_header(image, orientation), []
    except FileNotFoundError:
        return None, [("missing_image", image, "no such image file")]
    except OSError as error:
        return None, [("unreadable_image", image, f"not a readable image ({error})")]


def read_record(
    files: VocFiles, images: dict[str, Path], image_id: str, orientation: Orientation = "exif"
) -> VocRecord:
    """Read what a VOC folder says about an image; `images` are the image files by name without suffix."""
    image = images.get(image_id, files.images / f"{image_id}.jpg")
    xml = files.annotations / f"{image_id}.xml"
    if not xml.is_file() and (flat := files.annotations / f"{Path(image_id).name}.xml").is_file():
        xml = flat
    stated_size = None
    header, problems = opened(image, orientation)
    objects: list[VocObject] = []
    object_problems: list[tuple[str, Path, str]] = []
    try:
        tree = _without_namespaces(ElementTree.fromstring(xml.read_bytes()))
    except FileNotFoundError:
        problems.append(("missing_annotation", xml, f"no XML for image {image_id}"))
    # ValueError: what defusedxml raises for entities and the like; LookupError: an unknown encoding.
    except (ParseError, ValueError, LookupError, OSError) as error:
        problems.append(("unparsable_annotation", xml, f"not XML that can be read safely ({error})"))
    else:
        stated_size = as_size(tree.findtext("size/width"), tree.findtext("size/height"))
        for number, element in enumerate(tree.findall("object"), start=1):
            found = _read_object(element, number)
            if isinstance(found, str):
                object_problems.append(("malformed_object", xml, f"object {number}: {found}"))
            else:
                objects.append(found)
    return VocRecord(
        image_id, image, xml, header, stated_size, tuple(objects), tuple(problems), tuple(object_problems)
    )


def _without_namespaces(tree: Element) -> Element:
    for element in tree.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    return tree


def _read_object(element: Element, number: int) -> VocObject | str:
    """Return the object, or what is wrong with it."""
    name = (element.findtext("name") or "").strip()
    if not name:
        return "it has no <name>"
    if element.find("bndbox") is None and element.find("robndbox") is not None:
        return f"'{name}': it has a rotated box (<robndbox>); expected an upright one (<bndbox>)"
    texts = [element.findtext(f"bndbox/{edge}") for edge in EDGES]
    try:
        xmin, ymin, xmax, ymax = (float(text or "") for text in texts)
    except ValueError:
        return f"'{name}': its <bndbox> needs four numbers {', '.join(EDGES)}, not {texts}"
    if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
        return f"'{name}': its box ({', '.join(map(str, texts))}) is not finite"
    if xmax < xmin or ymax < ymin:
        return f"'{name}': its box ends before it begins ({', '.join(map(str, texts))})"
    difficult = flag(element.findtext("difficult"))
    if difficult is None:
        return f"'{name}': its <difficult> is {element.findtext('difficult')!r}, neither yes nor no"
    return VocObject(number, name, (xmin, ymin, xmax, ymax), difficult)
