"""Write data sets in the layouts people have them in."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

VOC_OBJECT = (
    "<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>"
    "<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>"
    "</object>"
)


def write_image(path: Path, size=(40, 30)) -> Path:
    """An image of noise of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def write_voc_xml(folder: Path, image_id: str, objects, size=(40, 30)) -> Path:
    """An annotation; objects are (name, (xmin, ymin, xmax, ymax)) or (name, box, difficult)."""
    path = folder / "Annotations" / f"{image_id}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [
        VOC_OBJECT.format(name=o[0], box=o[1], difficult=int(o[2]) if len(o) > 2 else 0) for o in objects
    ]
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    path.write_text(f"<annotation>{stated}{''.join(texts)}</annotation>")
    return path


def write_voc_split(folder: Path, split: str, ids) -> Path:
    """The list of a split's images."""
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{image_id}\n" for image_id in ids))
    return path


def write_voc(folder: Path, images, split="train", size=(40, 30)) -> Path:
    """A VOC folder; images maps ids to objects."""
    for image_id, objects in images.items():
        write_image(folder / "JPEGImages" / f"{image_id}.jpg", size)
        write_voc_xml(folder, image_id, objects, size)
    write_voc_split(folder, split, images)
    return folder


def write_voc_dataset(folder: Path, dataset, split="test") -> Path:
    """A data set in memory as a VOC folder."""
    images = {}
    for image in dataset.images:
        a = image.annotation
        corners = (a.boxes + np.float32([1, 1, 0, 0])).astype(int).tolist()
        rows = zip(a.labels, corners, a.difficult, strict=True)
        images[image.id] = [(dataset.classes[label], box, difficult) for label, box, difficult in rows]
    return write_voc(folder, images, split, (dataset.images[0].width, dataset.images[0].height))


def write_coco(folder: Path, annotations, images=2, categories=None, size=(40, 30)) -> tuple[Path, Path]:
    """A COCO file and its image folder; images have the ids 1, 2, ... and are called 1.jpg, 2.jpg, ..."""
    categories = {1: "cat", 7: "dog"} if categories is None else categories
    for number in range(1, images + 1):
        write_image(folder / "images" / f"{number}.jpg", size)
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "width": size[0], "height": size[1]}
            for n in range(1, images + 1)
        ],
        "annotations": [{"id": n} | a for n, a in enumerate(annotations, start=1)],
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path, folder / "images"
