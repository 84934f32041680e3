"""The digest of an evaluation's data, both splits together (torch-free)."""

import json
import re
from pathlib import Path
from typing import Any

from carryover.core.data.config import DataConfig
from carryover.core.data.digest import Contents, Digests, Named, contents_of, images_below
from carryover.transfer.classify.data_config import ClassifyData
from carryover.transfer.classify.probe_config import VocImages
from carryover.transfer.detect.config import CocoData, CocoSplit, VocData
from carryover.transfer.segment.data_config import Ade20kMasks, CityscapesMasks, FolderMasks, VocMasks

# Annotation files of half a gigabyte are searched, not parsed.
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


def evaluation_digest(config: Any, known: Digests | None = None) -> str | None:
    """Return a digest of what an evaluation recipe reads; see `core.data.digest.Contents.digest`.

    None where the data set is not there (the evaluation itself will say so).
    """
    data = config.data
    root = None if data.root is None else data.root.expanduser()
    if root is None or not root.is_dir():
        return None
    chosen = getattr(getattr(config, "labels", None), "list", None)
    listed = (
        Contents(texts=(("labels.list", Path(chosen)),)) if chosen and Path(chosen).is_file() else Contents()
    )
    contents = _contents(data, root)
    return (contents + listed).digest(known) if contents else None


def _contents(data: Any, root: Path) -> Contents:
    if isinstance(data, ClassifyData):
        return _labelled(data, root)
    if isinstance(data, VocData):
        parts = [data.year_and_list(split) for split in (*data.train, data.test)]
        return _sum(_voc(root, year, name) for year, name in dict.fromkeys(parts))
    if isinstance(data, VocImages):
        parts = [VocData.year_and_list(split) for split in (data.train, data.test)]
        return _sum(_voc(root, year, name) for year, name in parts)
    if isinstance(data, CocoData):
        return _coco(root, data.train) + _coco(root, data.test)
    if isinstance(data, VocMasks):
        return _sum(_voc_masks(root, part.split, part.masks) for part in (*data.train, data.test))
    if isinstance(data, FolderMasks):
        return _sum(_pair(root, pair.image_dir, pair.mask_dir) for pair in (data.train, data.test))
    if isinstance(data, Ade20kMasks):
        return _sum(_pair(root, Path("images", s), Path("annotations", s)) for s in (data.train, data.test))
    if isinstance(data, CityscapesMasks):
        return _sum(_pair(root, Path("leftImg8bit", s), Path("gtFine", s)) for s in (data.train, data.test))
    if isinstance(data, DataConfig):
        return contents_of(data)
    raise TypeError(f"no digest is defined for {type(data).__name__}")


def _labelled(data: ClassifyData, root: Path) -> Contents:
    if data.kind == "inaturalist":
        files = [root / f"{split}.json" for split in (data.split, data.test_split)]
        return _sum(Contents(((f.name, f),), tuple(_named_in(f, root))) for f in files)
    parts = {"train": data.train, "test": data.test}
    return _sum(_prefixed(contents_of(part), name) for name, part in parts.items())


def _voc(root: Path, year: int | None, split: str) -> Contents:
    folder = root / f"VOC{year}" if year is not None and (root / f"VOC{year}").is_dir() else root
    if year is None and not (folder / "ImageSets").is_dir():
        folder = next((p.parent for p in sorted(root.glob("*/ImageSets"))), folder)
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    where = f"{year or ''}/{split}"
    ids = [line.split()[0] for line in _lines(listing) if line.split()]
    texts = [(f"{where} list", listing), *((f"{i}.xml", folder / "Annotations" / f"{i}.xml") for i in ids)]
    return Contents(tuple(texts), tuple(_by_stem(folder / "JPEGImages", ids)))


def _coco(root: Path, split: CocoSplit) -> Contents:
    file = root / split.annotations
    return Contents(((split.annotations.as_posix(), file),), tuple(_named_in(file, root / split.images)))


def _voc_masks(root: Path, split: str, masks: Path) -> Contents:
    listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    ids = [line.split()[0] for line in _lines(listing) if line.split()]
    texts = [(f"{split} list", listing), *((f"{masks}/{i}.png", root / masks / f"{i}.png") for i in ids)]
    return Contents(tuple(texts), tuple(_by_stem(root / "JPEGImages", ids)))


def _pair(root: Path, images: Path, masks: Path) -> Contents:
    """List a folder of images and a folder of masks, which may be the same one."""
    texts = tuple(images_below(root / masks, f"{masks.as_posix()}/"))
    return Contents(
        texts, () if images == masks else tuple(images_below(root / images, f"{images.as_posix()}/"))
    )


def _by_stem(folder: Path, ids: list[str]) -> list[Named]:
    try:
        found = {path.stem: path for path in sorted(folder.iterdir())}
    except OSError:
        found = {}
    return [(i, found.get(Path(i).stem, folder / i)) for i in ids]


def _named_in(file: Path, folder: Path) -> list[Named]:
    """List the images that a COCO annotation file names."""
    try:
        raw = file.read_bytes()
    except OSError:
        return []
    names = []
    for found in _FILE_NAME.findall(raw):
        try:
            names.append(json.loads(found))
        except ValueError:
            names.append(found.decode(errors="replace"))
    return [(name, folder / name) for name in dict.fromkeys(names)]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _prefixed(contents: Contents, prefix: str) -> Contents:
    return Contents(
        tuple((f"{prefix}/{name}", path) for name, path in contents.texts),
        tuple((f"{prefix}/{name}", path) for name, path in contents.images),
    )


def _sum(parts: Any) -> Contents:
    return sum(parts, Contents())
