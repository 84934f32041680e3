"""iNaturalist's own annotations: <split>.json with images, annotations and categories."""

from pathlib import Path

from pydantic import BaseModel


class _Image(BaseModel):
    id: int
    file_name: str


class _Annotation(BaseModel):
    image_id: int
    category_id: int


class _Category(BaseModel):
    id: int
    name: str


class AnnotationFile(BaseModel):
    """Contents of an annotation file."""

    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_annotations(file: Path) -> AnnotationFile:
    """Read one file; raises OSError or pydantic's ValidationError."""
    return AnnotationFile.model_validate_json(file.read_bytes())
