"""iNaturalist's own layout: <split>.json with images, annotations and categories, beside the images."""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from carryover.configs import UserError
from carryover.core.data.datasets import FileImages, Paths


class _Image(BaseModel):
    id: int
    file_name: str


class _Annotation(BaseModel):
    image_id: int
    category_id: int


class _Category(BaseModel):
    id: int
    name: str


class _File(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def open_inaturalist(root: Path, split: str) -> FileImages:
    """Read one split; classes are the categories by id (their names repeat: 2018's are numbers).

    Raises UserError for a missing or malformed file, an image without a category, or an absent image.
    """
    file = root / f"{split}.json"
    try:
        read = _File.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(s) for s in first["loc"])
        raise UserError(f"{file}: not iNaturalist's annotations: {where}: {first['msg']}") from None
    order = {category.id: label for label, category in enumerate(sorted(read.categories, key=lambda c: c.id))}
    label_of = {a.image_id: order.get(a.category_id) for a in read.annotations}
    bare = [image.file_name for image in read.images if label_of.get(image.id) is None]
    if bare:
        raise UserError(f"{file}: {len(bare)} images without a known category: {', '.join(bare[:5])}")
    absent = [image.file_name for image in read.images if not (root / image.file_name).is_file()]
    if absent:
        raise UserError(f"{file}: {len(absent)} images are not there: {', '.join(absent[:5])}")
    labels = [label for image in read.images if (label := label_of[image.id]) is not None]
    names = [f"{category.id}:{category.name}" for category in sorted(read.categories, key=lambda c: c.id)]
    return FileImages(Paths.of(root, [image.file_name for image in read.images]), labels, names)
