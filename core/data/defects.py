"""Defects of a data set, and a recipe's policy for each."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from carryover.configs import Incidental, Section
from carryover.configs.counted import counted
from carryover.configs.errors import UserError

Action = Literal["fatal", "drop", "clip", "keep"]
Check = Annotated[Literal["fatal", "keep"], Incidental]
"""Policy of a comparison: stop, or go on. It changes no number, so it is not part of the identity."""

LISTED = 20
"""So many names are written out in a message; the rest are counted."""

LISTED_OF_A_KIND = 5
"""So many defects of one kind are written out in an error or a summary."""

ALWAYS_FATAL = frozenset({"empty_split", "unreadable_index", "empty_class", "class_mismatch"})
"""Kinds that leave nothing sensible to go on with."""


@dataclass(frozen=True)
class Defect:
    """One thing wrong with one file, and what is done about it.

    Attributes
    ----------
    choices
        What a recipe may say instead of `action`.
    key
        Where the recipe says it, as dotted keys; "" where nothing can be said.
    """

    file: Path
    kind: str
    message: str
    action: Action
    choices: tuple[str, ...] = ()
    key: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.message} [{self.kind}: {self.action}]"

    @property
    def decision(self) -> str:
        """The line of YAML that decides otherwise; "" where there is none."""
        others = [choice for choice in self.choices if choice != self.action]
        if not others:
            return ""
        opened = self.key.replace(".", ": {")
        return f"{opened}: {' or '.join(others)}{'}' * self.key.count('.')}"


class Policy(Section):
    """Policies of a recipe; every field is a kind of defect."""

    def action(self, kind: str) -> Action:
        """Return what is to be done with a defect of this kind."""
        return "fatal" if kind in ALWAYS_FATAL else getattr(self, kind)

    def defect(self, file: Path, kind: str, message: str, action: Action | None = None) -> Defect:
        """Return a defect of `file` with what is done about it, which is `action` if that is given."""
        field = type(self).model_fields.get(kind)
        choices = get_args(field.annotation) if field else ()
        return Defect(file, kind, message, action or self.action(kind), choices, f"data.defects.{kind}")


class DefectPolicy(Policy):
    """Policy for each kind of defect: stop, drop what is wrong, repair it, or keep it.

    Attributes
    ----------
    zero_area
        A box that is a line or a point (VOC: xmax = xmin or ymax = ymin, which VOC's inclusive
        coordinates could also read as one pixel; COCO: w = 0 or h = 0). ``keep`` is for scoring exactly
        as the reference evaluators do; R-CNN training needs ``drop``.
    outside_image
        A box more than half a pixel over the edge. ``clip`` cuts it; one wholly outside is dropped.
    size_mismatch
        The annotation states another size than the image file has. ``drop`` leaves the image out,
        ``keep`` trusts the file.
    missing_image, unreadable_image
        No such image file, or one that cannot be decoded to its last pixel. ``drop`` leaves the image out.
    ambiguous_range
        A picture whose values are in no range that could be known (see `core.data.pictures`).
    missing_annotation
        VOC: no XML for an image of the split. ``keep`` takes it as an image without objects.
    unparsable_annotation
        VOC: XML that is not well-formed, or that declares entities. ``drop`` leaves the image out.
    malformed_object
        An object or entry without a class, with a coordinate missing, not a number, or a negative size.
    unknown_class
        A class that is not in the list. ``drop`` leaves the object out.
    duplicate_id
        An image, annotation or category that occurs twice. ``drop`` leaves the later ones out.
    orphan_annotation
        COCO: an annotation of an image that is not in the file.
    degenerate_mask
        A polygon with fewer than three points or no area, an RLE that is empty or of another size.
        ``drop`` leaves the polygon out; the object keeps its box.
    absent_class
        Classes of a VOC recipe without an object to train on; of COCO's, those that are tested all the same.
    untested_class
        Classes without an object in the test split: their AP is undefined, and in no mean.
    counted_from_zero
        VOC: a box begins at 0, so coordinates do not count from 1 (``data.first_pixel: 0`` reads them so).
    below_pixel
        More than a quarter of the boxes are less than a pixel wide or high: they are normalized, most likely.
    box_mask_mismatch
        COCO: more than a quarter of the boxes overlap less than half with the box around their own mask.
    test_in_train
        A test image that is a training image too, by its content.
    repeated_object
        More than a quarter of the objects repeat another one of the same image, class and box.
    repeated_image
        COCO: one image file has several ids.
    lost_masks
        COCO, where masks are wanted: more than a quarter of them are bad (``degenerate_mask``).
    missing_mask
        COCO: an object without a mask in a file whose others have one. ``keep``: its
        box counts, and it takes no part in the metric of masks. ``drop`` leaves the object out.
    """

    zero_area: Literal["fatal", "drop", "keep"] = "drop"
    outside_image: Literal["fatal", "clip", "drop", "keep"] = "clip"
    size_mismatch: Literal["fatal", "drop", "keep"] = "fatal"
    missing_image: Literal["fatal", "drop"] = "fatal"
    unreadable_image: Literal["fatal", "drop"] = "fatal"
    ambiguous_range: Literal["fatal", "drop"] = "fatal"
    missing_annotation: Literal["fatal", "drop", "keep"] = "fatal"
    unparsable_annotation: Literal["fatal", "drop"] = "fatal"
    malformed_object: Literal["fatal", "drop"] = "fatal"
    unknown_class: Literal["fatal", "drop"] = "fatal"
    duplicate_id: Literal["fatal", "drop"] = "fatal"
    orphan_annotation: Literal["fatal", "drop"] = "fatal"
    degenerate_mask: Literal["fatal", "drop", "keep"] = "drop"
    missing_mask: Literal["fatal", "drop", "keep"] = "keep"
    absent_class: Check = "fatal"
    untested_class: Check = "keep"
    counted_from_zero: Check = "keep"
    below_pixel: Check = "fatal"
    box_mask_mismatch: Check = "fatal"
    repeated_object: Check = "fatal"
    repeated_image: Check = "fatal"
    lost_masks: Check = "fatal"
    test_in_train: Check = "fatal"


class MaskDefectPolicy(Policy):
    """Policy for each kind of defect: stop before training, drop the image, or keep it.

    Attributes
    ----------
    missing_image, missing_mask
        One of a pair's two files is not there.
    ambiguous_range
        An image whose values are in no range that could be known (see `core.data.pictures`).
    unreadable_image, unreadable_mask
        An image file that cannot be decoded to its last pixel; a mask that cannot be decoded, or has colors
        where indices are expected.
    size_mismatch
        Image and mask are not of the same size.
    out_of_range
        A mask value (or color) that is neither a class nor the ignored one. ``keep`` keeps the image and
        ignores those pixels.
    absent_class, untested_class
        A class of the recipe that has no pixel in the training masks, or in the test masks.
    single_class
        Only one of the recipe's classes has a pixel in the training masks.
    interpolated_class
        A class of which nearly all pixels lie between a lower and a higher class: masks that were resized
        with interpolation.
    lossy_mask
        A mask in a format that changes pixels (JPEG): labels turn into others along every edge.
    palette_order
        Masks with palettes in which one color has several indices: they are in a color quantizer's order.
    test_in_train
        A test image that is a training image too, by its content.
    """

    missing_image: Literal["fatal", "drop"] = "fatal"
    missing_mask: Literal["fatal", "drop"] = "fatal"
    unreadable_image: Literal["fatal", "drop"] = "fatal"
    ambiguous_range: Literal["fatal", "drop"] = "fatal"
    unreadable_mask: Literal["fatal", "drop"] = "fatal"
    size_mismatch: Literal["fatal", "drop"] = "fatal"
    out_of_range: Literal["fatal", "drop", "keep"] = "fatal"
    absent_class: Check = "fatal"
    untested_class: Check = "keep"
    single_class: Check = "fatal"
    interpolated_class: Check = "fatal"
    lossy_mask: Check = "fatal"
    palette_order: Check = "fatal"
    test_in_train: Check = "fatal"


@dataclass(frozen=True)
class SettledBox:
    """A box after the policy was applied: `box` is None when it goes."""

    box: tuple[float, float, float, float] | None
    defects: tuple[Defect, ...] = ()


def settle_box(
    box: tuple[float, float, float, float],
    is_flat: bool,
    size: tuple[int, int],
    policy: DefectPolicy,
    file: Path,
    what: str,
) -> SettledBox:
    """Return an ``[x1, y1, x2, y2)`` box as the policy wants it, with what was wrong with it.

    `is_flat` says that the file states a line or a point (which the box of a layout with inclusive
    coordinates no longer shows); `size` is the image's (width, height); `what` names the object and
    gives its coordinates as the file does.
    """
    width, height = size
    x1, y1, x2, y2 = box
    clipped = (
        min(max(x1, 0.0), width),
        min(max(y1, 0.0), height),
        min(max(x2, 0.0), width),
        min(max(y2, 0.0), height),
    )
    if is_flat:
        message = f"{what}: its box is a line or a point, not an area"
        defect = policy.defect(file, "zero_area", message)
        return SettledBox(box if defect.action == "keep" else None, (defect,))
    wholly_outside = clipped[2] <= clipped[0] or clipped[3] <= clipped[1]
    # Annotations rounded to two decimals overhang by a hundredth of a pixel: no defect.
    if not wholly_outside and max(abs(a - b) for a, b in zip(box, clipped, strict=True)) <= 0.5:
        return SettledBox(box)
    action = policy.action("outside_image")
    where = "is wholly outside" if wholly_outside else "reaches over the edge of"
    message = f"{what}: its box {where} the image of {width} x {height}"
    if wholly_outside:
        action = "drop" if action == "clip" else action
    kept = {"clip": clipped, "keep": box}.get(action)
    return SettledBox(kept, (policy.defect(file, "outside_image", message, action),))


def refuse_fatal(defects: Sequence[Defect], what: str) -> None:
    """Raise one UserError that lists the fatal defects by kind, and says what would decide each."""
    fatal = [defect for defect in defects if defect.action == "fatal"]
    if fatal:
        raise UserError(
            _listing(fatal, f"{what}: {counted(fatal, 'defect')} that the recipe does not forgive")
        )


def summarize(defects: Sequence[Defect], what: str) -> str:
    """Return the defects for a person to read: the count of each kind, and the first of each."""
    if not defects:
        return f"{what}: no defects found"
    return _listing(defects, f"{what}: {counted(defects, 'defect')}")


def tally(defects: Iterable[Defect]) -> str:
    """Return how many defects there are of each kind, the most frequent first: ``zero_area 3, ...``."""
    counts = Counter(defect.kind for defect in defects)
    return ", ".join(f"{kind} {count}" for kind, count in counts.most_common())


def _listing(defects: Sequence[Defect], heading: str) -> str:
    """Return a block of lines, grouped by kind: a thousand defects of one must not crowd out another."""
    groups: dict[str, list[Defect]] = {}
    for defect in defects:
        groups.setdefault(defect.kind, []).append(defect)
    lines = [f"{heading} ({tally(defects)})"]
    for kind, found in sorted(groups.items(), key=lambda group: -len(group[1])):
        more = len(found) - LISTED_OF_A_KIND
        lines += [f"  {defect}" for defect in found[:LISTED_OF_A_KIND]]
        lines += [f"  ... and {more} more of {kind}"] if more > 0 else []
        lines += [f"    to decide otherwise: {found[0].decision}"] if found[0].decision else []
    return "\n".join(lines)
