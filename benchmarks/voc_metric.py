"""The VOC metric beside Detectron2's PascalVOCDetectionEvaluator, at the size of the VOC2007 test set.

    python benchmarks/voc_metric.py [--images 4952] [--detections 100] [--runs 5] [--metric 11point]

Times are medians of runs taken in turn, ours (data set and predictions in memory -> AP) and theirs
(``evaluate()`` alone: what ``process`` spends on writing detections as text is not counted against it, and
its XML cache is warm). Where Detectron2 is not importable, a plain loop over detections stands in, and the
table says so. The APs must agree to 1e-6, or the benchmark fails. Writes a dated table to
benchmarks/results/.
"""

import argparse
import datetime
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import write_table
from carryover.core.data.objects.dataset import Annotation, DetectionDataset, DetectionImage
from carryover.core.data.objects.voc import VOC_CLASSES
from carryover.core.training.provenance import hardware
from carryover.transfer.tasks.detection.predictions import ImagePrediction
from carryover.transfer.tasks.detection.voc_metrics import COCO_IOUS, RECALL_LEVELS, Metric, voc_ap

WIDTH, HEIGHT = 500, 375


def scene(images: int, detections: int, seed: int = 0) -> tuple[DetectionDataset, list[ImagePrediction]]:
    """VOC2007 test's density: 3 objects an image, a fifth difficult, persons a third of them; detections of
    which a tenth lie near an object, the others anywhere, in classes of VOC's frequencies."""
    random = np.random.default_rng(seed)
    frequency = np.where(np.array(VOC_CLASSES) == "person", 0.35, 0.65 / (len(VOC_CLASSES) - 1))
    found, predictions = [], []
    for number in range(images):
        n = 1 + random.poisson(2)
        corner = random.integers(0, (WIDTH - 160, HEIGHT - 160), (n, 2))
        boxes = np.concatenate([corner, corner + random.integers(20, 160, (n, 2))], axis=1)
        labels = random.choice(len(VOC_CLASSES), n, p=frequency)
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        annotation = Annotation(
            boxes.astype(np.float32), labels, random.random(n) < 0.2, np.zeros(n, dtype=bool), sides
        )
        found.append(DetectionImage(f"{number:06d}", Path(f"{number:06d}.jpg"), WIDTH, HEIGHT, annotation))
        corner = random.uniform(0, (WIDTH - 160, HEIGHT - 160), (detections, 2))
        guesses = np.concatenate([corner, corner + random.uniform(20, 160, (detections, 2))], axis=1)
        guessed = random.choice(len(VOC_CLASSES), detections, p=frequency)
        near = np.flatnonzero(random.random(detections) < 0.1)
        source = random.integers(0, n, len(near))
        guesses[near] = boxes[source] + random.normal(size=(len(near), 4)) * 6
        guessed[near] = labels[source]
        scores = random.beta(0.5, 3, detections)
        scores[near] = random.beta(2, 2, len(near))
        predictions.append(
            ImagePrediction(
                f"{number:06d}",
                np.clip(guesses, 0, (WIDTH, HEIGHT, WIDTH, HEIGHT)).astype(np.float32),
                scores.astype(np.float32),
                guessed,
            )
        )
    classes = tuple(VOC_CLASSES)
    ids = tuple(range(1, len(classes) + 1))
    return DetectionDataset("benchmark", classes, tuple(found), "voc", ids, 2007), predictions


def detectron2_evaluator(
    folder: Path, dataset: DetectionDataset, predictions: list[ImagePrediction], metric: Metric
) -> Callable[[], float]:
    """Detectron2's evaluate() with the same detections processed already; ImportError without Detectron2."""
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, Instances

    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(str(i.id) for i in dataset.images))
    for image in dataset.images:
        a = image.annotation
        objects = "".join(
            f"<object><name>{dataset.classes[label]}</name><pose/><truncated>0</truncated>"
            f"<difficult>{int(difficult)}</difficult><bndbox><xmin>{x1 + 1:.0f}</xmin>"
            f"<ymin>{y1 + 1:.0f}</ymin><xmax>{x2:.0f}</xmax><ymax>{y2:.0f}</ymax></bndbox></object>"
            for (x1, y1, x2, y2), label, difficult in zip(a.boxes, a.labels, a.difficult, strict=True)
        )
        (folder / "Annotations" / f"{image.id}.xml").write_text(f"<annotation>{objects}</annotation>")
    MetadataCatalog.get("benchmark").set(
        thing_classes=list(dataset.classes),
        dirname=str(folder),
        split="test",
        year=2007 if metric == "11point" else 2012,
    )
    evaluator = PascalVOCDetectionEvaluator("benchmark")
    evaluator.reset()
    for p in predictions:
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_boxes = Boxes(torch.from_numpy(p.boxes))
        instances.scores = torch.from_numpy(p.scores)
        instances.pred_classes = torch.from_numpy(p.labels)
        evaluator.process([{"image_id": p.image_id}], [{"instances": instances}])
    return lambda: float(evaluator.evaluate()["bbox"]["AP"])


def plain_loop(dataset: DetectionDataset, predictions: list[ImagePrediction], metric: Metric) -> float:
    """The metric as a development kit would write it: one detection after the other, at one IoU at a time."""
    aps = []
    for label in range(len(dataset.classes)):
        boxes_of, difficult_of = {}, {}
        for image in dataset.images:
            a = image.annotation
            mine = a.labels == label
            boxes_of[image.id] = a.boxes[mine].astype(np.float64) + np.array([1, 1, 0, 0])
            difficult_of[image.id] = a.difficult[mine]
        lines = [
            (p.image_id, float(f"{score:.3f}"), [float(f"{v:.1f}") for v in (x1 + 1, y1 + 1, x2, y2)])
            for p in predictions
            for (x1, y1, x2, y2), score, one in zip(p.boxes, p.scores, p.labels, strict=True)
            if one == label
        ]
        order = np.argsort(np.array([-score for _, score, _ in lines]))
        n_objects = sum(int((~flags).sum()) for flags in difficult_of.values())
        for iou in COCO_IOUS:
            taken: set[tuple[str | int, int]] = set()
            true, false = np.zeros(len(lines)), np.zeros(len(lines))
            for rank, position in enumerate(order):
                image_id, _, box = lines[position]
                others = boxes_of[image_id]
                if not len(others):
                    false[rank] = 1
                    continue
                low, high = np.maximum(others[:, :2], box[:2]), np.minimum(others[:, 2:], box[2:])
                both = np.maximum(high - low + 1, 0).prod(axis=1)
                sizes = (others[:, 2:] - others[:, :2] + 1).prod(axis=1)
                overlaps = both / ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) + sizes - both)
                best = int(overlaps.argmax())
                if overlaps[best] <= iou:
                    false[rank] = 1
                elif not difficult_of[image_id][best]:
                    (false if (image_id, best) in taken else true)[rank] = 1
                    taken.add((image_id, best))
            recall = np.cumsum(true) / n_objects
            precision = np.cumsum(true) / np.maximum(np.cumsum(true) + np.cumsum(false), 1e-16)
            if metric == "11point":
                aps.append(np.mean([precision[recall >= r].max(initial=0) for r in RECALL_LEVELS]))
            else:
                envelope = np.maximum.accumulate(precision[::-1])[::-1]
                aps.append(np.sum(np.diff(recall, prepend=0) * envelope))
    return 100 * float(np.mean(aps))


def measure(run: Callable[[], float]) -> tuple[float, float]:
    """Return (seconds, AP) of one run."""
    start = time.perf_counter()
    ap = run()
    return time.perf_counter() - start, ap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4952)
    parser.add_argument("--detections", type=int, default=100, help="an image")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--metric", choices=("11point", "area"), default="11point")
    arguments = parser.parse_args()
    dataset, predictions = scene(arguments.images, arguments.detections)
    objects = sum(len(image.annotation) for image in dataset.images)

    def ours() -> float:
        return voc_ap(dataset, predictions, arguments.metric).ap

    with tempfile.TemporaryDirectory() as folder:
        try:
            theirs = detectron2_evaluator(Path(folder), dataset, predictions, arguments.metric)
            reference = "Detectron2"
        except ImportError as error:
            reference = "plain loop (Detectron2 is not importable)"
            print(f"{reference}: {error}")

            def theirs() -> float:
                return plain_loop(dataset, predictions, arguments.metric)

        measure(ours)
        first, _ = measure(theirs)
        print(f"{reference}, first run (its XML read, not counted): {first:.1f} s", flush=True)
        times: dict[str, list[float]] = {"ours": [], reference: []}
        for run in range(arguments.runs):
            seconds, ap = measure(ours)
            times["ours"].append(seconds)
            seconds, expected = measure(theirs)
            times[reference].append(seconds)
            print(f"run {run + 1}: ours {times['ours'][-1]:.3f} s, {reference} {seconds:.1f} s", flush=True)
            if abs(ap - expected) > 1e-6:
                raise SystemExit(f"AP {ap} here, {expected} with {reference}: not the same metric")
    medians = {name: statistics.median(values) for name, values in times.items()}
    table = [
        f"# VOC metric ({arguments.metric}), {datetime.date.today().isoformat()}",
        "",
        f"{arguments.images} images, {objects} objects, {arguments.images * arguments.detections} detections,"
        f" IoU 0.50:0.95; AP {ap:.6f} from both.",
        f"{hardware()}, Python {platform.python_version()},"
        f" numpy {np.__version__}. Medians of {arguments.runs} runs taken in turn.",
        "",
        "| | seconds (median) | fastest | slowest | times ours |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {medians[name]:.3f} | {min(values):.3f} | {max(values):.3f}"
            f" | {medians[name] / medians['ours']:.1f} |"
            for name, values in times.items()
        ),
    ]
    print("\n".join(table))
    write_table(f"voc-metric-{arguments.metric}", table)


if __name__ == "__main__":
    main()
