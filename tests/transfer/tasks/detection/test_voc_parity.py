"""Our VOC metric and Detectron2's PascalVOCDetectionEvaluator give the same numbers."""

import dataclasses
import functools
import uuid

import numpy as np
import pytest

from carryover.core.data.objects.voc import read_voc
from carryover.transfer.tasks.detection.voc_metrics import voc_ap
from tests.transfer.tasks.detection.layouts import write_voc_dataset
from tests.transfer.tasks.detection.voc_scenes import prediction, random_scene, voc_annotation, voc_dataset

pytestmark = pytest.mark.detectron2


@pytest.fixture(autouse=True)
def stable_sort(monkeypatch):
    """Let Detectron2 rank ties by the rule that ours are ranked by; its own order is the processor's."""
    monkeypatch.setattr(np, "argsort", functools.partial(np.argsort, kind="stable"))


def detectron2_ap(folder, dataset, predictions, metric):
    """AP, AP50 and AP75 from Detectron2, which reads the annotations from the folder itself."""
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, Instances

    name = f"scene_{uuid.uuid4().hex}"
    MetadataCatalog.get(name).set(
        thing_classes=list(dataset.classes),
        dirname=str(folder),
        split="test",
        year=2007 if metric == "11point" else 2012,
    )
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for p in predictions:
        instances = Instances((dataset.images[0].height, dataset.images[0].width))
        instances.pred_boxes = Boxes(torch.from_numpy(p.boxes))
        instances.scores = torch.from_numpy(p.scores)
        instances.pred_classes = torch.from_numpy(p.labels)
        evaluator.process([{"image_id": p.image_id}], [{"instances": instances}])
    with np.errstate(invalid="ignore"):
        bbox = evaluator.evaluate()["bbox"]
    return [bbox["AP"], bbox["AP50"], bbox["AP75"]]


def ours(folder, dataset, predictions, metric):
    """The same from the files as our reader reads them."""
    read, defects = read_voc(folder, [(2007, "test")], dataset.classes)
    assert defects == []
    result = voc_ap(read, predictions, metric)
    return [result.ap, result.ap50, result.ap75]


@pytest.mark.parametrize("metric", ["11point", "area"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("tied_scores", [False, True])
@pytest.mark.parametrize("difficult", [0.0, 0.3, 1.0])
def test_random_scenes(tmp_path, metric, classes, tied_scores, difficult):
    """Classes without objects, with and without detections, are left out of Detectron2's list: it counts them
    as 0, or makes every mean NaN."""
    for seed in range(3):
        folder = tmp_path / str(seed)
        dataset, predictions = random_scene(
            seed, classes=classes, tied_scores=tied_scores, difficult=difficult, images=20, detections=40
        )
        write_voc_dataset(folder, dataset)
        found = ours(folder, dataset, predictions, metric)
        there = {int(k) for i in dataset.images for k in i.annotation.labels[~i.annotation.difficult]}
        if not there:
            assert np.isnan(found).all()
            continue
        expected = detectron2_ap(folder, *_with(dataset, predictions, sorted(there)), metric)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def _with(dataset, predictions, labels):
    """The same with some of the classes alone."""
    new = {label: number for number, label in enumerate(labels)}
    classes = tuple(dataset.classes[label] for label in labels)
    kept = []
    for p in predictions:
        mine = np.isin(p.labels, labels)
        renumbered = np.array([new[int(label)] for label in p.labels[mine]], dtype=np.int64)
        kept.append(dataclasses.replace(p, boxes=p.boxes[mine], scores=p.scores[mine], labels=renumbered))
    return dataclasses.replace(dataset, classes=classes), kept


@pytest.mark.parametrize("metric", ["11point", "area"])
def test_no_detections(tmp_path, metric):
    dataset, _ = random_scene(0)
    write_voc_dataset(tmp_path, dataset)
    assert ours(tmp_path, dataset, [], metric) == [0, 0, 0]
    assert detectron2_ap(tmp_path, dataset, [], metric) == [0, 0, 0]


@pytest.mark.parametrize("metric", ["11point", "area"])
def test_many_ties_in_one_class(tmp_path, metric):
    random = np.random.default_rng(0)
    corner = random.integers(0, 60, (300, 2))
    boxes = np.concatenate([corner, corner + random.integers(5, 25, (300, 2))], axis=1)
    dataset = voc_dataset([voc_annotation(boxes[i::10][:6], [0] * 6) for i in range(10)], 1)
    noise = random.normal(size=boxes.shape) * 2
    found = np.clip(boxes + noise, 0, [120, 90, 120, 90]).astype(np.float32)
    scores = random.choice([0.5, 0.50004, 0.5006, 0.05], 300)
    predictions = [
        prediction(f"{i:06d}", found[i::10], scores[i::10], [0] * len(scores[i::10])) for i in range(10)
    ]
    write_voc_dataset(tmp_path, dataset)
    expected = detectron2_ap(tmp_path, dataset, predictions, metric)
    assert expected[1] > 5
    np.testing.assert_allclose(ours(tmp_path, dataset, predictions, metric), expected, rtol=0, atol=1e-6)
