"""Check pairs of images and masks before anybody trains on them; every defect is listed by file."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from carryover.core.data.decoding import undecodable
from carryover.core.data.defects import Defect, MaskDefectPolicy
from carryover.core.data.masks.dataset import MaskCode, SegmentationImage, decode
from carryover.core.data.masks.layouts import Pair
from carryover.core.data.pictures import Orientation, read_header
from carryover.core.training.progress import progress

_LISTED_VALUES = 10


def check_pairs(
    pairs: Sequence[Pair],
    code: MaskCode,
    policy: MaskDefectPolicy,
    name: str,
    orientation: Orientation = "exif",
) -> tuple[tuple[SegmentationImage, ...], list[Defect]]:
    """Return the usable pairs and every defect; masks are decoded whole, of images the header is read."""
    images: list[SegmentationImage] = []
    defects: list[Defect] = []
    with ThreadPoolExecutor(os.cpu_count()) as threads, progress(f"checking {name}", len(pairs)) as bar:
        for image, found in threads.map(lambda pair: _check(pair, code, policy, orientation), pairs):
            bar.advance(1)
            defects += found
            if image is not None:
                images.append(image)
    bad = undecodable([image.path for image in images], images[0].path.parent, name) if images else {}
    for path, trouble in bad.items():
        message = f"cannot be decoded ({trouble.reason})"
        defects.append(Defect(path, trouble.kind, message, policy.action(trouble.kind)))
    images = [image for image in images if image.path not in bad]
    if not images:
        message = "no usable pair of an image and a mask"
        defects.append(Defect(Path(name), "empty_split", message, policy.action("empty_split")))
    return tuple(images), defects


def _check(
    pair: Pair, code: MaskCode, policy: MaskDefectPolicy, orientation: Orientation
) -> tuple[SegmentationImage | None, list[Defect]]:
    def defect(file: Path, kind: str, message: str) -> list[Defect]:
        return [Defect(file, kind, message, policy.action(kind))]

    try:
        header = read_header(pair.image, orientation)
    except FileNotFoundError:
        return None, defect(pair.image, "missing_image", "no such image")
    except OSError as error:
        return None, defect(pair.image, "unreadable_image", f"not readable as an image ({error})")
    try:
        labels, unknown = decode(pair.mask, code, orientation)
    except FileNotFoundError:
        return None, defect(pair.mask, "missing_mask", f"no such mask of {pair.image.name}")
    except Image.DecompressionBombError as error:
        return None, defect(pair.mask, "unreadable_mask", str(error))
    # PIL passes on whatever its decoders meet in a broken file: struct.error, IndexError, SyntaxError, ...
    except Exception as error:
        return None, defect(pair.mask, "unreadable_mask", f"not readable as a mask ({error})")
    width, height = header.size
    image = SegmentationImage(pair.id, pair.image, pair.mask, width, height, orientation, header.turned)
    if labels.shape != (height, width):
        size = f"{labels.shape[1]} x {labels.shape[0]}"
        message = f"is {size}, but {pair.image.name} is {width} x {height}"
        return None, defect(pair.mask, "size_mismatch", message)
    if unknown:
        shown = ", ".join(unknown[:_LISTED_VALUES]) + (", ..." if len(unknown) > _LISTED_VALUES else "")
        found = defect(pair.mask, "out_of_range", f"has values that are no class and not ignored: {shown}")
        return (image if found[0].action == "keep" else None), found
    return image, []
