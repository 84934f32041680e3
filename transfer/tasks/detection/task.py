"""Detection and instance segmentation: load, verify, train, recalibrate, test, score."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from carryover.configs.registry import imported
from carryover.core.data.objects.splits import Splits, read_splits
from carryover.core.formats.metrics_log import METRICS_NAME
from carryover.transfer.results.record import ResultRecord
from carryover.transfer.tasks.base import Outcome, Run, Task
from carryover.transfer.tasks.detection.announce import announce
from carryover.transfer.tasks.detection.config import DetectionConfig
from carryover.transfer.tasks.detection.detectron2 import library
from carryover.transfer.tasks.detection.labels import labeled_part

if TYPE_CHECKING:
    from carryover.core.backbones.source import Source
    from carryover.core.training.interrupt import StopRequest
    from carryover.transfer.tasks.backend import Backend
    from carryover.transfer.tasks.detection.model import Detector

log = logging.getLogger(__name__)

WEIGHTS_NAME, SAMPLES_NAME = "detector.safetensors", "samples"


class Detection(Task[DetectionConfig, Splits, "Detector"]):
    """Train a detector on the backbone, and test it, with torchvision or Detectron2.

    `out` then holds metrics.jsonl (losses), predictions.json.gz, outcomes.npz, detector.safetensors (the
    tested weights, under the library's own names) and samples/*.png. With Detectron2 it also holds the
    receipt of the conversion that the model was verified against (backbone.pkl.receipt.json) and the recipe
    in Detectron2's own terms (detectron2.yaml).
    """

    def prepare(self, config: DetectionConfig) -> Splits:
        """Read both splits; raises UserError for defects that the recipe does not forgive."""
        if config.backend == "detectron2":
            library.require_detectron2()
        splits = labeled_part(config, read_splits(config.data, needs_masks=config.model.masks))
        log.info("%s", announce(config, splits))
        if config.backend == "detectron2":
            library.import_detectron2()
        return splits

    def launch(self, config: DetectionConfig, checkpoint: "Path | Source", out: Path) -> ResultRecord | None:
        """Start one process a GPU with Detectron2's `launch`, unless a launcher has started them already."""
        if config.backend != "detectron2" or (processes := library.own_processes(config.device)) < 2:
            return None
        from carryover.transfer.tasks.detection.detectron2.launch import evaluate_in_processes

        assert isinstance(checkpoint, Path)
        return evaluate_in_processes(processes, config, checkpoint, out)

    def require(self, config: DetectionConfig, source: "Source") -> None:
        """Raise UserError for a checkpoint normalized differently, or one that carries no such detector."""
        from carryover.core.backbones.pixels import require_same_pixels

        require_same_pixels(config.input, source.metadata, source.path)
        if config.backend == "torchvision":
            from carryover.transfer.tasks.detection.pyramid import require_detectable

            require_detectable(source.metadata.backbone, config.model)

    def begun_by_v1(self, run: Run[DetectionConfig, Splits]) -> tuple[object, ...]:
        """Return seed and checkpoint."""
        return run.config.seed, run.source.sha256

    @contextmanager
    def build(self, run: Run[DetectionConfig, Splits]) -> "Iterator[Detector]":
        """Build the recipe's detector in the recipe's library."""
        backend = backend_of(run.config)
        run.ranks.share_of(run.config.solver.ims_per_batch, "solver.ims_per_batch")
        backend.require(run.config, run.ranks)
        with backend.build(run) as detector:
            where = run.source.path
            log.info("all %d backbone tensors of the detector equal those of %s", detector.carried, where)
            yield detector

    def train(self, run: Run[DetectionConfig, Splits], model: "Detector", stop: "StopRequest") -> float:
        """Train to the end of the schedule."""
        from carryover.core.training.iterations import train_iterations
        from carryover.core.training.validation import spread
        from carryover.transfer.tasks.detection.inference import predict
        from carryover.transfer.tasks.detection.metrics import score

        def look(images: int) -> dict[str, float]:
            test = run.data.test
            some = replace(test, images=spread(test.images, images))
            scored = score(run.config.data, some, predict(run, model, some.images), run.config.model.masks)
            shown = [m for m in scored.metrics if m.name in ("AP", "AP50")]
            return {m.label: m.value for m in shown if m.value is not None}

        return train_iterations(run, model, f"train {run.config.model.label}", stop, look)

    def test(self, run: Run[DetectionConfig, Splits], model: "Detector") -> Outcome:
        """Recalibrate, detect in every test image, and score by the rules of the data set's layout."""
        from carryover.transfer.tasks.backend import trained
        from carryover.transfer.tasks.detection.data import annotated_images
        from carryover.transfer.tasks.detection.facts import DetectionFacts
        from carryover.transfer.tasks.detection.inference import predict, recalibrate
        from carryover.transfer.tasks.detection.metrics import score
        from carryover.transfer.tasks.detection.predictions_file import FILE_NAME, write_predictions
        from carryover.transfer.tasks.detection.samples import draw_samples
        from carryover.transfer.tasks.outputs import save_weights

        config, out, test = run.config, run.out, run.data.test
        layers = recalibrate(run, model)
        if run.ranks.first:
            save_weights(out / WEIGHTS_NAME, model.model)
        predictions = predict(run, model, test.images)
        if run.ranks.first:
            # Before anything is made of them: an error in what follows leaves them there.
            write_predictions(out / FILE_NAME, predictions)
        scored = score(config.data, test, predictions, config.model.masks)
        if run.ranks.first:
            draw_samples(test, predictions, out / SAMPLES_NAME, config.samples)
        backend, images = backend_of(config), len(annotated_images(run.data.train))
        return Outcome(
            metrics=scored.metrics,
            outcomes=scored.outcomes,
            train_images=images,
            label_fraction=config.label_fraction,
            backend=backend.name,
            backend_version=backend.version,
            model=config.model.label,
            facts=DetectionFacts(
                **trained(run, model),
                precise_bn_layers=layers,
                empty_images_left_out=len(run.data.train.images) - images,
                metric_rule=config.data.rule,
                classes=len(test.classes),
                classes_measured=scored.outcomes.measured(),
            ),
            artifacts={
                "metrics": METRICS_NAME,
                "predictions": FILE_NAME,
                "weights": WEIGHTS_NAME,
                "samples": SAMPLES_NAME,
                **model.artifacts,
            },
        )


def backend_of(config: DetectionConfig) -> "Backend[Detector]":
    """Return the recipe's library; imports it."""
    found: Backend[Detector] = imported(
        f"carryover.transfer.tasks.detection.{config.backend}.backend:BACKEND"
    )
    return found
