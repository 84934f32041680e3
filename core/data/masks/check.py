"""Check pairs of images and masks before anybody trains on them; every defect is listed by file."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from carryover.core.data.decoding import undecodable
from carryover.core.data.defects import Defect, MaskDefectPolicy
from carryover.core.data.masks.dataset import IGNORED, MaskCode, SegmentationImage, decode
from carryover.core.data.masks.layouts import Pair
from carryover.core.data.pictures import Orientation, read_header
from carryover.core.training.progress import progress

_LISTED_VALUES = 10
_NOTHING = np.zeros(IGNORED + 1, dtype=np.int64)


def check_pairs(
    pairs: Sequence[Pair],
    code: MaskCode,
    policy: MaskDefectPolicy,
    name: str,
    orientation: Orientation = "exif",
    taught: Sequence[str] = (),
) -> tuple[tuple[SegmentationImage, ...], list[Defect], np.ndarray]:
    """Return the usable pairs, every defect, and how many pixels the pairs have of each label (256,).

    Images and masks are decoded whole.

    `taught` are the classes of a training split: one of them without a pixel is a defect.
    """
    images: list[SegmentationImage] = []
    defects: list[Defect] = []
    pixels: dict[Path, np.ndarray] = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads, progress(f"checking {name}", len(pairs)) as bar:
        for image, found, counts in threads.map(lambda pair: _check(pair, code, policy, orientation), pairs):
            bar.advance(1)
            defects += found
            if image is not None:
                images.append(image)
                pixels[image.mask] = counts
    bad = undecodable([image.path for image in images], images[0].path.parent, name) if images else {}
    for path, trouble in bad.items():
        message = f"cannot be decoded ({trouble.reason})"
        defects.append(Defect(path, trouble.kind, message, policy.action(trouble.kind)))
    images = [image for image in images if image.path not in bad]
    counted = sum((pixels[image.mask] for image in images), _NOTHING)
    if not images:
        message = "no usable pair of an image and a mask"
        defects.append(Defect(Path(name), "empty_split", message, policy.action("empty_split")))
    else:
        defects += _absent(taught, counted, policy, name)
    return tuple(images), defects, counted


def _check(
    pair: Pair, code: MaskCode, policy: MaskDefectPolicy, orientation: Orientation
) -> tuple[SegmentationImage | None, list[Defect], np.ndarray]:
    def defect(file: Path, kind: str, message: str) -> list[Defect]:
        return [Defect(file, kind, message, policy.action(kind))]

    try:
        header = read_header(pair.image, orientation)
    except FileNotFoundError:
        return None, defect(pair.image, "missing_image", "no such image"), _NOTHING
    except OSError as error:
        return None, defect(pair.image, "unreadable_image", f"not readable as an image ({error})"), _NOTHING
    try:
        labels, unknown = decode(pair.mask, code, orientation)
    except FileNotFoundError:
        return None, defect(pair.mask, "missing_mask", f"no such mask of {pair.image.name}"), _NOTHING
    except Image.DecompressionBombError as error:
        return None, defect(pair.mask, "unreadable_mask", str(error)), _NOTHING
    # PIL passes on whatever its decoders meet in a broken file: struct.error, IndexError, SyntaxError, ...
    except Exception as error:
        return None, defect(pair.mask, "unreadable_mask", f"not readable as a mask ({error})"), _NOTHING
    width, height = header.size
    image = SegmentationImage(pair.id, pair.image, pair.mask, width, height, orientation, header.turned)
    counts = np.bincount(labels.ravel(), minlength=IGNORED + 1)
    if labels.shape != (height, width):
        size = f"{labels.shape[1]} x {labels.shape[0]}"
        message = f"is {size}, but {pair.image.name} is {width} x {height}"
        return None, defect(pair.mask, "size_mismatch", message), _NOTHING
    if unknown:
        shown = ", ".join(unknown[:_LISTED_VALUES]) + (", ..." if len(unknown) > _LISTED_VALUES else "")
        found = defect(pair.mask, "out_of_range", f"has values that are no class and not ignored: {shown}")
        return (image if found[0].action == "keep" else None), found, counts
    return image, [], counts


def _absent(taught: Sequence[str], pixels: np.ndarray, policy: MaskDefectPolicy, name: str) -> list[Defect]:
    """Return one defect that names every class without a pixel."""
    absent = [f"'{title}' ({label})" for label, title in enumerate(taught) if not pixels[label]]
    if not absent:
        return []
    shown = ", ".join(absent[:_LISTED_VALUES]) + (", ..." if len(absent) > _LISTED_VALUES else "")
    message = f"{len(absent)} of {len(taught)} classes have no pixel in the training masks: {shown}"
    if len(taught) == 2 and pixels[IGNORED]:
        message += (
            f"; {100 * pixels[IGNORED] / pixels.sum():.1f} % of all pixels are ignored ({IGNORED}). Masks"
            " painted 0 and 255 need `ignore: null` and `palette: [[0, 0, 0], [255, 255, 255]]`"
        )
    kind = "single_class" if len(absent) == len(taught) - 1 else "absent_class"
    return [Defect(Path(name), kind, message, policy.action(kind))]
