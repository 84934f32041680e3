"""Check pairs of images and masks before training; every defect is listed by file."""

import glob
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from carryover.core.data.decoding import decoding_defects
from carryover.core.data.defects import Defect, MaskDefectPolicy
from carryover.core.data.masks.compare import LISTED_VALUES, MaskCounts
from carryover.core.data.masks.dataset import IGNORED, MaskCode, SegmentationImage, decode
from carryover.core.data.masks.layouts import Pair
from carryover.core.data.pictures import Orientation, read_header
from carryover.core.training.progress import progress


def check_pairs(
    pairs: Sequence[Pair],
    code: MaskCode,
    policy: MaskDefectPolicy,
    name: str,
    orientation: Orientation = "exif",
) -> tuple[tuple[SegmentationImage, ...], list[Defect], MaskCounts]:
    """Return the usable pairs, every defect of a pair, and what the usable masks hold.

    Images and masks are decoded whole.
    """
    images: list[SegmentationImage] = []
    defects: list[Defect] = []
    counts: dict[Path, MaskCounts] = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads, progress(f"checking {name}", len(pairs)) as bar:
        for image, found, counted in threads.map(lambda pair: _check(pair, code, policy, orientation), pairs):
            bar.advance(1)
            defects += found
            if image is not None:
                images.append(image)
                counts[image.mask] = counted
    if images:
        bad = decoding_defects([image.path for image in images], images[0].path.parent, name, policy)
        defects += bad
        left_out = {defect.file for defect in bad}
        images = [image for image in images if image.path not in left_out]
    total = MaskCounts()
    for image in images:
        total.add(counts[image.mask])
    if not images:
        message = "no usable pair of an image and a mask"
        defects.append(policy.defect(Path(name), "empty_split", message))
    return tuple(images), defects, total


def _check(
    pair: Pair, code: MaskCode, policy: MaskDefectPolicy, orientation: Orientation
) -> tuple[SegmentationImage | None, list[Defect], MaskCounts]:
    def defect(file: Path, kind: str, message: str) -> list[Defect]:
        return [policy.defect(file, kind, message)]

    try:
        header = read_header(pair.image, orientation)
    except FileNotFoundError:
        return None, defect(pair.image, "missing_image", "no such image"), MaskCounts()
    except OSError as error:
        return (
            None,
            defect(pair.image, "unreadable_image", f"not readable as an image ({error})"),
            MaskCounts(),
        )
    try:
        decoded = decode(pair.mask, code, orientation)
    except FileNotFoundError:
        message = f"no such mask of {pair.image.name}{_named_otherwise(pair)}"
        return None, defect(pair.mask, "missing_mask", message), MaskCounts()
    except Image.DecompressionBombError as error:
        return None, defect(pair.mask, "unreadable_mask", str(error)), MaskCounts()
    # PIL passes on whatever its decoders meet in a broken file: struct.error, IndexError, SyntaxError, ...
    except Exception as error:
        return None, defect(pair.mask, "unreadable_mask", f"not readable as a mask ({error})"), MaskCounts()
    labels, unknown = decoded.labels, decoded.unknown
    width, height = header.size
    image = SegmentationImage(pair.id, pair.image, pair.mask, width, height, orientation, header.turned)
    if labels.shape != (height, width):
        size = f"{labels.shape[1]} x {labels.shape[0]}"
        message = f"is {size}, but {pair.image.name} is {width} x {height}"
        return None, defect(pair.mask, "size_mismatch", message), MaskCounts()
    counts = MaskCounts.of(pair.mask, decoded)
    if unknown:
        shown = ", ".join(unknown[:LISTED_VALUES]) + (", ..." if len(unknown) > LISTED_VALUES else "")
        message = f"has values that are no class and not ignored: {shown}"
        classes = sum(0 <= label < IGNORED for label in code.labels)
        if not decoded.lossy and unknown == (str(classes),) and code.labels[0] == 0:
            message += "; where classes count from 1, say `first_index: 1`"
        found = defect(pair.mask, "out_of_range", message)
        # The colors of a lossy file say nothing about the data: it is a defect of its own.
        keeps = found[0].action == "keep" or decoded.lossy
        return (image if keeps else None), ([] if decoded.lossy else found), counts
    return image, [], counts


def _named_otherwise(pair: Pair) -> str:
    """Name a file that is probably the missing mask, and the key that reads it."""
    stem = Path(pair.id).name
    there = sorted(p.name for p in pair.mask.parent.glob(f"{glob.escape(stem)}*") if p != pair.image)
    return f"; there is {there[0]}: `mask_suffix: {there[0].removeprefix(stem)}`?" if there else ""
