"""Testing a detector: its batch statistics, then its detections in pixels of the original images."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from carryover.core.data.objects.dataset import DetectionImage
from carryover.core.data.workers import loading_processes, start_method
from carryover.core.training.distributed import share_buffers
from carryover.core.training.progress import progress
from carryover.transfer.tasks.detection.model import DetectionRun, Detector
from carryover.transfer.tasks.detection.predictions import ImagePrediction


def recalibrate(run: DetectionRun, detector: Detector) -> int:
    """Measure the batch statistics on the training steps that would come next, if the recipe asks for it.

    Returns how many layers have any.
    """
    config = run.config
    measured = 0
    if config.precise_bn:
        torch.manual_seed(config.seed)
        last = config.solver.iterations
        # In float32, as everything that follows: the statistics are those of the network that is tested.
        measured = detector.recalibrate(last, last + config.precise_bn)
    share_buffers(detector.model)
    return measured


@torch.no_grad()
def predict(run: DetectionRun, detector: Detector, images: Sequence[DetectionImage]) -> list[ImagePrediction]:
    """Run the detector on each image by itself, as Detectron2 does, and return one prediction an image.

    Ranks share the images, and each returns the predictions of all. All of it is in float32, whatever the
    precision of the training, as in Detectron2's own evaluation: scores of 8 bits would tie.
    """
    config, ranks = run.config, run.ranks
    detector.model.eval()
    own = images[ranks.rank :: ranks.world]
    workers = loading_processes(config.workers)
    loader = DataLoader(
        detector.test_images(own),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=start_method(workers),
    )
    predictions = []
    with progress(f"test {config.model.label}", len(own), shown=ranks.first) as bar:
        for source, loaded in zip(own, loader):
            predictions.append(detector.detect(loaded, source))
            bar.advance()
    if ranks.world == 1:
        return predictions
    parts: list[list[ImagePrediction]] = [[] for _ in range(ranks.world)]
    dist.all_gather_object(parts, predictions)
    merged = [(i * ranks.world + r, p) for r, part in enumerate(parts) for i, p in enumerate(part)]
    return [p for _, p in sorted(merged, key=lambda pair: pair[0])]
