"""Batches: which images each rank sees at each step, and their views, as a function of the seed alone."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from carryover.configs import UserError
from carryover.core.data.augment import draw_view
from carryover.core.data.config import AugmentConfig
from carryover.core.data.datasets import Dataset, MemoryImages, read_or_next, too_many_unreadable
from carryover.core.data.draws import keys, permutation
from carryover.core.data.strong import Erased, erased, rand_augment, seeded
from carryover.core.data.views import batch_views, center_view, image_views
from carryover.core.data.workers import end_with_interpreter, loading_processes, start_method
from carryover.core.training.device import copied_to, pins_memory
from carryover.core.training.distributed import part_of
from carryover.core.training.interrupt import outlive_signals

log = logging.getLogger(__name__)

# What a key is for, so that the order of images and their views draw from different sequences (CutMix has 3).
_ORDER, _VIEWS, _WHOLE, _, _POLICY, _ERASED = range(6)
# Widest view for which whole batches are faster than single images on a CPU (benchmarks/augment.py).
_BATCHED_UP_TO = 128


@dataclass(frozen=True)
class Batch:
    """This rank's images of one step.

    Attributes
    ----------
    index
        Their places in the data set, int64 (b,).
    views
        One normalized float32 tensor (b, 3, H, W) a view, in the order of `AugmentConfig.view_list`.
    label
        Their classes, int64 (b,); None: the data set has none.
    """

    index: Tensor
    views: list[Tensor]
    label: Tensor | None


@dataclass(frozen=True)
class _Request:
    """The images of one batch; `epoch` seeds their random views, None asks for the test view."""

    indices: NDArray[np.int64]
    epoch: int | None


@dataclass(frozen=True)
class _Made:
    """A batch before normalization: views are uint8, or float32 in [0, 1]; `unreadable` was passed over.

    `erased` are for each view the rectangles that are overwritten once it is normalized.
    """

    index: Tensor
    views: list[Tensor]
    label: Tensor | None
    unreadable: list[str]
    erased: list[list[Erased]]

    def pin_memory(self) -> "_Made":
        """Called by torch's DataLoader, so that copies to the GPU need not wait."""
        label = None if self.label is None else self.label.pin_memory()
        views = [v.pin_memory() for v in self.views]
        return _Made(self.index.pin_memory(), views, label, self.unreadable, self.erased)


class _ImageMaker:
    """Makes batches image by image; lives in the loader's processes."""

    def __init__(self, dataset: Dataset, augment: AugmentConfig, seed: int) -> None:
        self._dataset, self._augment, self._seed = dataset, augment, seed
        self._labels = None if dataset.labels is None else np.asarray(dataset.labels)
        self._policies = [rand_augment(view, augment.mean) for view in augment.view_list]

    def __getitem__(self, request: _Request) -> _Made | UserError:
        try:
            read = [read_or_next(self._dataset, int(i)) for i in request.indices]
        except UserError as error:
            # Raised here it would reach the main process wrapped in a traceback.
            return error
        images = [image for image, _, _ in read]
        shown = np.array([at for _, at, _ in read])
        label = None if self._labels is None else torch.from_numpy(self._labels[shown])
        unreadable = [reason for _, _, reasons in read for reason in reasons]
        views = self._views(images, request)
        rectangles = _erased(self._augment, self._seed, request)
        return _Made(torch.from_numpy(request.indices), views, label, unreadable, rectangles)

    def _views(self, images: list[Tensor], request: _Request) -> list[Tensor]:
        if request.epoch is None:
            return [torch.stack([center_view(image, self._augment.test_view) for image in images])]
        height, width = np.array([image.shape[1:] for image in images]).T
        views = []
        for number, config in enumerate(self._augment.view_list):
            key = keys(self._seed, _VIEWS, request.epoch, request.indices, number)
            policy = self._policy(request, number)
            views.append(image_views(images, config, draw_view(config, key, height, width), policy))
        return views

    def _policy(self, request: _Request, number: int) -> Callable[[int, Tensor], Tensor] | None:
        """Return what RandAugment does to the rows of a view; None where the recipe has none."""
        change = self._policies[number]
        if change is None or request.epoch is None:
            return None
        key = keys(self._seed, _POLICY, request.epoch, request.indices, number)

        def changed(row: int, view: Tensor) -> Tensor:
            with seeded(int(key[row])):
                return change(view)

        return changed


class _BatchMaker:
    """Makes whole batches of a decoded data set, on the device that they are needed on."""

    def __init__(
        self, dataset: MemoryImages, augment: AugmentConfig, seed: int, device: torch.device
    ) -> None:
        self._pixels, self._augment, self._seed, self._device = dataset.pixels, augment, seed, device
        self._labels = None if dataset.labels is None else torch.tensor(dataset.labels)

    def __getitem__(self, request: _Request) -> _Made:
        index = torch.from_numpy(request.indices)
        label = None if self._labels is None else self._labels[index]
        rectangles = _erased(self._augment, self._seed, request)
        return _Made(index, self._views(self._pixels[index], request), label, [], rectangles)

    def _views(self, images: Tensor, request: _Request) -> list[Tensor]:
        if request.epoch is None:
            # On the host, whatever the device: there torch resizes in eight bits, elsewhere in floats.
            return [center_view(images, self._augment.test_view)]
        images = copied_to(images, self._device)
        b, _, height, width = images.shape
        heights, widths = np.full(b, height), np.full(b, width)
        views = []
        for number, config in enumerate(self._augment.view_list):
            key = keys(self._seed, _VIEWS, request.epoch, request.indices, number)
            views.append(batch_views(images, config, draw_view(config, key, heights, widths)))
        return views


class _Source:
    """Turns requests into batches: here, or in `workers` processes that outlive an epoch."""

    def __init__(
        self, dataset: Dataset, augment: AugmentConfig, seed: int, workers: int, device: torch.device | None
    ) -> None:
        self._device = device or torch.device("cpu")
        self._limit = dataset.max_unreadable
        self._unreadable: set[str] = set()
        mean, std = torch.tensor(augment.mean), torch.tensor(augment.std)
        self._scale = (1 / std).view(3, 1, 1).to(self._device)
        self._shift = (-mean / std).view(3, 1, 1).to(self._device)
        self._queue: list[_Request] = []
        self._maker: _ImageMaker | _BatchMaker
        self._loader: DataLoader[_Made] | None = None
        if _is_batched(dataset, augment, self._device):
            assert isinstance(dataset, MemoryImages)
            self._maker = _BatchMaker(dataset, augment, seed, self._device)
            return
        self._maker = _ImageMaker(dataset, augment, seed)
        if processes := loading_processes(workers):
            self._loader = DataLoader(
                self._maker,  # type: ignore[arg-type]
                sampler=_Queue(self._queue),
                batch_size=None,
                collate_fn=_unchanged,  # type: ignore[arg-type]
                num_workers=processes,
                multiprocessing_context=start_method(processes),
                persistent_workers=True,
                prefetch_factor=4,
                pin_memory=pins_memory(self._device),
                # Its own, so that loading takes nothing from torch's global generator.
                generator=torch.Generator().manual_seed(seed),
                worker_init_fn=outlive_signals,
            )
            end_with_interpreter(self, self._loader)

    def batches(self, requests: Sequence[_Request]) -> Iterator[Batch]:
        """Yield the batch of each request, in order."""
        self._queue[:] = requests
        made: Iterable[_Made | UserError]
        made = self._loader if self._loader is not None else (self._maker[r] for r in requests)
        for one in made:
            if isinstance(one, UserError):
                raise one
            self._count(one.unreadable)
            yield self._finished(one)

    def _finished(self, made: _Made) -> Batch:
        views = []
        for view in made.views:
            on_device = copied_to(view, self._device)
            # In place: a large tensor is dearer to allocate than to fill.
            in_floats = on_device if on_device.is_floating_point() else on_device.float().mul_(1 / 255)
            views.append(in_floats.mul_(self._scale).add_(self._shift))
        for view, rectangles in zip(views, made.erased):
            for one in rectangles:
                one.write(view)
        label = None if made.label is None else copied_to(made.label, self._device)
        return Batch(copied_to(made.index, self._device), views, label)

    def _count(self, unreadable: list[str]) -> None:
        for reason in unreadable:
            if reason in self._unreadable:
                continue
            self._unreadable.add(reason)
            if len(self._unreadable) > self._limit:
                raise UserError(too_many_unreadable(sorted(self._unreadable), self._limit))
            log.warning(
                "unreadable image %d (%d tolerated), the next one is shown in its place: %s",
                len(self._unreadable),
                self._limit,
                reason,
            )


class Loader:
    """The random views of a training, epoch by epoch.

    A sample's views depend on (seed, epoch, index, view) alone, and the global batches on (seed, epoch)
    alone: rank r of `world` gets the r-th part of each. Any number of workers and a resumed epoch give the
    same batches.

    Parameters
    ----------
    batch_size
        Images of one batch on this rank.
    workers
        Loading processes; a data set that is kept decoded needs none and starts none.
    drop_last
        Leave out the images that do not fill a last global batch.
    device
        Where batches are wanted; None: the CPU.

    Raises
    ------
    UserError
        When a global batch has more images than the data set, or the backend asked for cannot be had.
    """

    def __init__(
        self,
        dataset: Dataset,
        augment: AugmentConfig,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        drop_last: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self._images, self._batch, self._seed = len(dataset), batch_size * world, seed
        self._rank, self._world, self._drop_last = rank, world, drop_last
        if self._images < self._batch and drop_last:
            raise UserError(
                f"batch_size {self._batch} is more than the {self._images} images of the data set"
            )
        self._source = _Source(dataset, augment, seed, workers, device)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same on every rank."""
        return self._images // self._batch if self._drop_last else -(-self._images // self._batch)

    @property
    def steps_of_whole(self) -> int:
        """Batches of `whole`."""
        return -(-self._images // self._batch)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from step `start_step` on."""
        order = permutation(self._images, self._seed, _ORDER, epoch)
        steps = range(start_step, self.steps_per_epoch)
        return self._batches(order, [step * self._batch for step in steps], epoch)

    def whole(self) -> Iterator[Batch]:
        """Yield every image once in the test view, in random order, for a pass under batch statistics.

        Every batch is full, as batch statistics and collectives need it: the last one begins early enough,
        and repeats images of the one before. Folders lie class by class, so the order is random.
        """
        order = permutation(self._images, self._seed, _WHOLE)
        starts = [min(s, self._images - self._batch) for s in range(0, self._images, self._batch)]
        return self._batches(order, starts, None)

    def _batches(self, order: NDArray[np.int64], starts: Sequence[int], epoch: int | None) -> Iterator[Batch]:
        requests = []
        for start in starts:
            of_all = order[start : start + self._batch]
            requests.append(_Request(np.array_split(of_all, self._world)[self._rank], epoch))
        return self._source.batches(requests)


class EvaluationLoader:
    """The test view of every image, in order, the last batch as small as it comes out.

    Rank r of `world` gets the r-th contiguous part of the data set. Parameters as `Loader`'s.
    """

    def __init__(
        self,
        dataset: Dataset,
        augment: AugmentConfig,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        own = np.arange(len(dataset))[part_of(len(dataset), rank, world)]
        self._requests = [_Request(own[i : i + batch_size], None) for i in range(0, len(own), batch_size)]
        self._source = _Source(dataset, augment, 0, workers, device)

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Batch]:
        return self._source.batches(self._requests)


class _Queue:
    """The requests of the epoch at hand, for torch's DataLoader."""

    def __init__(self, requests: list[_Request]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[_Request]:
        return iter(list(self._requests))

    def __len__(self) -> int:
        return len(self._requests)


def _unchanged(made: _Made) -> _Made:
    return made


def _erased(augment: AugmentConfig, seed: int, request: _Request) -> list[list[Erased]]:
    """Draw the rectangles of random erasing, for each view of a batch; none of the test view."""
    if request.epoch is None:
        return []
    epoch, at = request.epoch, request.indices
    views = enumerate(augment.view_list)
    return [erased(config, keys(seed, _ERASED, epoch, at, number)) for number, config in views]


def _is_batched(dataset: Dataset, augment: AugmentConfig, device: torch.device) -> bool:
    in_memory = isinstance(dataset, MemoryImages)
    if augment.backend == "batched" and not in_memory:
        raise UserError(
            "augment.backend: batched needs a data set that is kept decoded: images of one size"
            " (data.resize=SIDE makes them so), no larger together than data.cache_gib"
        )
    if any(view.rand_augment for view in augment.view_list):
        return False
    widest = max(view.size for view in augment.view_list)
    # On a GPU always; MPS lacks the float64 that crops are computed in.
    small = device.type != "mps" and (widest <= _BATCHED_UP_TO or device.type != "cpu")
    return augment.backend == "batched" or (augment.backend == "auto" and in_memory and small)
