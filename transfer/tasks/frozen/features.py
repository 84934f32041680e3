"""The feature store: a frozen network's features of a data set, computed once, memory-mapped ever after.

An entry is keyed by the checkpoint's hash, the images themselves and the way they are shown. It is written
beside its place and moved there whole; what is found torn or changed is computed again.
"""

import hashlib
import json
import logging
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.distributed as dist
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from carryover.configs import UserError, WorkError
from carryover.configs.formats import FileModel, Format
from carryover.core.data.config import AugmentConfig
from carryover.core.data.datasets import MemoryImages
from carryover.core.data.digest import Contents
from carryover.core.data.prepared import Dataset, EvaluationLoader
from carryover.core.training.device import bf16_autocast
from carryover.core.training.distributed import Ranks, barrier, part_of, world_size
from carryover.core.training.progress import progress
from carryover.transfer.tasks.frozen.depths import pooled

log = logging.getLogger(__name__)

FORMAT: Final = Format("feature store entry", 3)
_META, _LABELS = "meta.json", "labels.npy"
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Request:
    """Features of `images` in the test view of `augment`, as the backbone of a checkpoint sees them.

    `depths` are names of `transfer.tasks.frozen.depths`; `precision` is that of the forward pass, "fp32" or
    "bf16" (features are kept in float32 either way).
    """

    backbone_digest: str
    images: Dataset
    augment: AugmentConfig
    depths: tuple[str, ...]
    precision: str

    @property
    def key(self) -> str:
        """A hash of all that determines the features."""
        view = self.augment.test_view
        parts = {
            "format": FORMAT.version,
            "checkpoint": self.backbone_digest,
            "images": digest(self.images),
            "orientation": getattr(self.images, "orientation", None),
            "view": [view.resize, view.size, view.whole, *self.augment.mean, *self.augment.std],
            "depths": self.depths,
            "precision": self.precision,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class FeatureSet:
    """Features (N, D) float32 by depth, memory-mapped, and labels (N,) int64."""

    by_depth: dict[str, Tensor]
    labels: Tensor
    path: Path

    @property
    def pooled(self) -> Tensor:
        """The features, where they are of one depth."""
        (features,) = self.by_depth.values()
        return features


class _Entry(FileModel):
    """meta.json of an entry: what its files must look like."""

    images: PositiveInt
    dims: dict[str, PositiveInt]
    checksums: dict[str, NonNegativeInt]


def stored_features(
    request: Request, backbone: nn.Module, store: Path, ranks: Ranks, batch_size: int, workers: int
) -> FeatureSet:
    """Return the features asked for, from the store if it has them whole, else computed and stored.

    Every rank calls this and computes its part. `backbone` is put into evaluation mode on the rank's device.

    Raises WorkError naming the first image whose features are not finite.
    """
    place = store / request.key
    found = _open(place) if ranks.first else None
    if not _agreed(found is not None, ranks):
        log.info("computing features of %d images, stored in %s (`store`)", len(request.images), store)
        _compute(request, backbone, place, ranks, batch_size, workers)
    else:
        log.info("features of %d images: from %s", len(request.images), place)
    found = _open(place)
    if found is None:
        raise WorkError(f"{place}: the features just written are not there; is the file system full?")
    return found


def digest(images: Dataset) -> str:
    """Hash a data set's images and labels: pixels that are in memory, else files (`Contents.digest`)."""
    hashed = hashlib.sha256(json.dumps([len(images), list(images.classes)]).encode())
    hashed.update(np.asarray(images.labels or [], dtype=np.int64).tobytes())
    if isinstance(images, MemoryImages):
        pixels = images.pixels.numpy()
        hashed.update(json.dumps(pixels.shape).encode())
        for start in range(0, len(pixels), 4096):
            hashed.update(np.ascontiguousarray(pixels[start : start + 4096]).data)
        return hashed.hexdigest()
    assert images.paths is not None
    files = tuple((f"{i} {path.parent.name}/{path.name}", path) for i, path in enumerate(images.paths))
    hashed.update(Contents(images=files).digest().encode())
    hashed.update(str(getattr(images, "resize", None)).encode())
    return hashed.hexdigest()


def _open(place: Path) -> FeatureSet | None:
    """Open an entry if it is whole; a damaged one is removed."""
    if not place.is_dir():
        return None
    try:
        entry = FORMAT.parse(_Entry, FORMAT.read(place / _META) or {}, place / _META)
        for name, expected in entry.checksums.items():
            if _checksum(place / name) != expected:
                raise ValueError(f"{name} is not as written")
        # Copy-on-write maps: torch wants writable memory, the file stays as it is.
        by_depth = {
            depth: torch.from_numpy(np.load(place / _file(depth), mmap_mode="c")) for depth in entry.dims
        }
        labels = torch.from_numpy(np.load(place / _LABELS, mmap_mode="c"))
        for depth, dim in entry.dims.items():
            if by_depth[depth].shape != (entry.images, dim):
                raise ValueError(f"{_file(depth)} has the shape {tuple(by_depth[depth].shape)}")
    except (OSError, ValueError, UserError) as error:
        log.warning("%s: damaged (%s); computing it again", place, error)
        shutil.rmtree(place, ignore_errors=True)
        return None
    return FeatureSet(by_depth, labels, place)


def _compute(
    request: Request, backbone: nn.Module, place: Path, ranks: Ranks, batch_size: int, workers: int
) -> None:
    images = request.images
    building = _building_place(place, ranks)
    loader = EvaluationLoader(
        images, request.augment, batch_size, ranks.rank, ranks.world, workers, ranks.device
    )
    backbone.to(ranks.device).eval()
    dims = _dims(request, backbone, ranks)
    if ranks.first:
        building.mkdir(parents=True)
        for depth, dim in dims.items():
            np.lib.format.open_memmap(building / _file(depth), "w+", np.float32, (len(images), dim)).flush()
        np.save(building / _LABELS, np.asarray(images.labels, dtype=np.int64))
    barrier()
    maps = {d: np.lib.format.open_memmap(building / _file(d), "r+") for d in dims}
    at = part_of(len(images), ranks.rank, ranks.world).start
    with (
        torch.inference_mode(),
        bf16_autocast(ranks.device, request.precision == "bf16"),
        progress("features", len(loader), shown=ranks.first) as bar,
    ):
        for batch in loader:
            x = batch.views[0].contiguous(memory_format=torch.channels_last)
            for depth, values in pooled(backbone, x, request.depths).items():
                rows = values.float().cpu()
                if not torch.isfinite(rows).all():
                    first = at + int((~torch.isfinite(rows)).any(dim=1).nonzero()[0])
                    name = images.paths[first] if images.paths is not None else f"image {first}"
                    raise WorkError(f"{name}: the checkpoint's features ({depth}) are not finite")
                maps[depth][at : at + len(rows)] = rows.numpy()
            at += len(batch.index)
            bar.advance(1)
    for written in maps.values():
        written.flush()
    barrier()
    if ranks.first:
        _publish(building, place, len(images), dims)
    barrier()


def _publish(building: Path, place: Path, images: int, dims: dict[str, int]) -> None:
    checksums = {name: _checksum(building / name) for name in [*map(_file, dims), _LABELS]}
    entry = _Entry(images=images, dims=dims, checksums=checksums)
    FORMAT.write(building / _META, entry.model_dump(mode="json"))
    try:
        building.replace(place)
    except OSError:
        # Another process has put the same entry there in the meantime.
        shutil.rmtree(building, ignore_errors=True)


def _building_place(place: Path, ranks: Ranks) -> Path:
    """Return a directory of this computation's own, the same on every rank."""
    pid: list[int] = [os.getpid()]
    if world_size() > 1:
        dist.broadcast_object_list(pid, src=0)
    building = place.with_name(f".{place.name}.{pid[0]}.building")
    if ranks.first:
        shutil.rmtree(building, ignore_errors=True)
    return building


def _dims(request: Request, backbone: nn.Module, ranks: Ranks) -> dict[str, int]:
    size = request.augment.test_view.size
    with torch.inference_mode():
        x = torch.zeros(1, 3, size, size, device=ranks.device)
        return {depth: v.shape[1] for depth, v in pooled(backbone, x, request.depths).items()}


def _agreed(found: bool, ranks: Ranks) -> bool:
    """Return the first rank's finding on every rank."""
    said = [found]
    if ranks.world > 1:
        dist.broadcast_object_list(said, src=0)
    return said[0]


def _file(depth: str) -> str:
    return f"features.{depth}.npy"


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
