"""COCO's metric beside hotcoco's, from files to numbers, at the density of COCO's val2017.

    python benchmarks/coco_metric.py [--images 1000] [--detections 65] [--runs 5] [--of ...] [--reference]

"ours": the annotation file and the predictions file that `evaluate` writes, to AP, per-class AP and what
every detection matched (which confidence intervals and `rescore` are counted from). "numbers alone" is the
same without what was matched. "hotcoco": its own example, from COCO's results file. Processor time of one
process and one thread each, taken in turn, medians. AP, AP50, AP75, APs, APm and APl must equal hotcoco's,
and with --reference pycocotools', bit for bit, or the benchmark fails. Writes a dated table.
"""

import argparse
import contextlib
import datetime
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import RESULTS, spread, write_table
from carryover.core.training.provenance import hardware
from carryover.transfer.tasks.detection import coco_metrics
from carryover.transfer.tasks.detection.coco_columns import columns_of, read_truth
from carryover.transfer.tasks.detection.coco_metrics import coco_ap
from carryover.transfer.tasks.detection.predictions import ImagePrediction, encode_masks
from carryover.transfer.tasks.detection.predictions_file import read_predictions, write_predictions

CLASSES, WIDTH, HEIGHT = 80, 640, 480


def write_scene(
    folder: Path, images: int, detections: int, masks: bool, seed: int = 0
) -> list[ImagePrediction]:
    """Write instances.json, predictions.json.gz and results.json: 7.3 objects an image, 80 classes, a
    hundredth of the objects crowds; a tenth of the detections lie near an object."""
    random = np.random.default_rng(seed)
    frequency = random.dirichlet(np.full(CLASSES, 0.6))
    annotations: list[dict[str, Any]] = []
    predictions = []
    for image in range(1, images + 1):
        n = 1 + random.poisson(6.3)
        side = np.exp(random.uniform(np.log(8), np.log(300), (n, 2)))
        corner = random.uniform(0, 1, (n, 2)) * ((WIDTH, HEIGHT) - side)
        boxes, labels = (
            np.concatenate([corner, corner + side], axis=1),
            random.choice(CLASSES, n, p=frequency),
        )
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist()):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": 0.6 * (x2 - x1) * (y2 - y1),
                "iscrowd": int(random.random() < 0.01),
            }
            outline = [x1, y1, x2, y1, x2, y2, (x1 + x2) / 2, y2, x1, (y1 + y2) / 2]
            if annotation["iscrowd"]:
                mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
                mask[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = 1
                (rle,) = encode_masks(mask[None])
                annotation["segmentation"] = {**rle, "counts": rle["counts"].decode()}
            else:
                annotation["segmentation"] = [outline]
            annotations.append(annotation)
        side = np.exp(random.uniform(np.log(8), np.log(300), (detections, 2)))
        corner = random.uniform(0, 1, (detections, 2)) * ((WIDTH, HEIGHT) - side)
        guesses = np.concatenate([corner, corner + side], axis=1)
        guessed = random.choice(CLASSES, detections, p=frequency)
        near = np.flatnonzero(random.random(detections) < 0.1)
        source = random.integers(0, n, len(near))
        guesses[near] = boxes[source] + random.normal(size=(len(near), 4)) * 6
        guesses[near, 2:] = np.maximum(guesses[near, 2:], guesses[near, :2] + 1)
        guessed[near] = labels[source]
        scores = random.beta(0.5, 3, detections)
        scores[near] = random.beta(2, 2, len(near))
        guesses = np.clip(guesses, 0, (WIDTH, HEIGHT, WIDTH, HEIGHT)).astype(np.float32)
        rles = None
        if masks:
            drawn = np.zeros((detections, HEIGHT, WIDTH), dtype=np.uint8)
            for mask, (x1, y1, x2, y2) in zip(drawn, guesses.astype(int)):
                mask[y1 : y2 + 1, x1 : x2 + 1] = 1
            rles = encode_masks(drawn)
        predictions.append(ImagePrediction(image, guesses, scores.astype(np.float32), guessed, rles))
    content = {
        "images": [{"id": i, "width": WIDTH, "height": HEIGHT} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    write_predictions(folder / "predictions.json.gz", predictions)
    results = [
        {
            "image_id": p.image_id,
            "category_id": int(label) + 1,
            "score": float(score),
            "bbox": [float(v) for v in (*box[:2], *(box[2:] - box[:2]))],
        }
        | (
            {}
            if p.masks is None
            else {"segmentation": {**p.masks[i], "counts": p.masks[i]["counts"].decode()}}
        )
        for p in predictions
        for i, (box, score, label) in enumerate(zip(p.boxes, p.scores, p.labels))
    ]
    if masks:
        for result in results:
            # As for pycocotools, whose areas of detections are then the masks'.
            del result["bbox"]
    (folder / "results.json").write_text(json.dumps(results))
    return predictions


def ours(folder: Path, of: str) -> np.ndarray:
    found = coco_ap(folder / "instances.json", read_predictions(folder / "predictions.json.gz"), of)
    return np.array([found.ap, found.ap50, found.ap75, found.aps, found.apm, found.apl])


def numbers_alone(folder: Path, of: str) -> np.ndarray:
    truth = read_truth(folder / "instances.json", of)
    found = columns_of(truth, read_predictions(folder / "predictions.json.gz"), of)
    precision = coco_metrics._evaluated(truth, found, of)[..., -1]
    everything = precision[..., 0]
    parts = (everything, everything[0], everything[5], *(precision[..., i] for i in (1, 2, 3)))
    return np.array([coco_metrics._mean(part) for part in parts])


def hotcocos(folder: Path, of: str) -> np.ndarray:
    from hotcoco import COCO, COCOeval

    return _evaluate(COCO, COCOeval, folder, of)


def pycocotoolss(folder: Path, of: str) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _evaluate(COCO, COCOeval, folder, of)


def _evaluate(COCO: Any, COCOeval: Any, folder: Path, of: str) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "instances.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "results.json")), of)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * np.array(evaluation.stats[:6])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--detections", type=int, default=65)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--of", nargs="+", choices=("bbox", "segm"), default=["bbox", "segm"])
    parser.add_argument("--reference", action="store_true", help="pycocotools too, once")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = ["| of | what | seconds of processor | ratio to hotcoco |", "|---|---|---|---|"]
    for of in arguments.of:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_scene(folder, arguments.images, arguments.detections, of == "segm")
            turns: dict[str, Callable[[Path, str], np.ndarray]] = {
                "ours": ours,
                "ours, numbers alone": numbers_alone,
                "hotcoco": hotcocos,
            }
            times: dict[str, list[float]] = {what: [] for what in turns}
            expected = hotcocos(folder, of)
            for _ in range(arguments.runs):
                for what, turn in turns.items():
                    begin = time.process_time()
                    found = turn(folder, of)
                    times[what].append(time.process_time() - begin)
                    if not np.array_equal(found, expected):
                        raise SystemExit(f"{of}: {what} {found}, hotcoco {expected}")
            if arguments.reference:
                begin = time.process_time()
                if not np.array_equal(pycocotoolss(folder, of), expected):
                    raise SystemExit(f"{of}: pycocotools differs from hotcoco")
                times["pycocotools, once"] = [time.process_time() - begin]
            base = statistics.median(times["hotcoco"])
            for what, taken in times.items():
                rows.append(f"| {of} | {what} | {spread(taken, 2)} | {statistics.median(taken) / base:.2f} |")
    today = datetime.date.today().isoformat()
    head = [
        f"# COCO's metric beside hotcoco's, {today}",
        "",
        f"{arguments.images:,} images, {arguments.images * arguments.detections:,} detections,"
        f" {CLASSES} classes; {hardware()}. Medians of {arguments.runs} (smallest to largest).",
        "",
    ]
    write_table("coco-metric", [*head, *rows], arguments.out)


if __name__ == "__main__":
    main()
