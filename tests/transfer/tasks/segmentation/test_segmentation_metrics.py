"""mIoU, mAcc and aAcc against scikit-learn and mmseg's own metric."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score

from carryover.core.data.masks.dataset import IGNORED
from carryover.transfer.results.outcomes.pixels import Pixels, scores
from carryover.transfer.tasks.segmentation.metrics import confusion

CLASSES = 6


def _scene(seed: int, absent: tuple[int, ...] = ()):
    """Labels and predictions that are right two times in three; some classes do not occur at all."""
    rng = np.random.default_rng(seed)
    present = [k for k in range(CLASSES) if k not in absent]
    truth = rng.choice(present, (37, 53))
    noise = rng.choice(present, truth.shape)
    predicted = np.where(rng.random(truth.shape) < 2 / 3, truth, noise)
    truth[rng.random(truth.shape) < 0.1] = IGNORED
    return truth.astype(np.uint8), predicted.astype(np.uint8)


def _outcomes(scenes, classes):
    """What was found in images of these truths and predictions."""
    found = [confusion(truth, predicted, classes) for truth, predicted in scenes]
    image = np.repeat(np.arange(len(found)), [len(pixels) for *_, pixels in found])
    names = tuple(str(k) for k in range(classes))
    ids = tuple(str(i) for i in range(len(found)))
    return Pixels(ids, names, image, *(np.concatenate(of) for of in zip(*found)))


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed):
    truth, predicted = _scene(seed)
    counted = truth != IGNORED
    y, z = truth[counted], predicted[counted]
    matrix = _outcomes([(truth, predicted)], CLASSES).matrix()
    assert (matrix == confusion_matrix(y, z, labels=range(CLASSES))).all()
    found = scores(matrix)
    assert found.iou == pytest.approx(100 * jaccard_score(y, z, average=None), abs=1e-9)
    assert found.accuracy == pytest.approx(100 * recall_score(y, z, average=None), abs=1e-9)
    assert found.miou == pytest.approx(100 * jaccard_score(y, z, average="macro"), abs=1e-9)
    assert found.macc == pytest.approx(100 * recall_score(y, z, average="macro"), abs=1e-9)
    assert found.aacc == pytest.approx(100 * accuracy_score(y, z), abs=1e-9)


@pytest.mark.mmseg
@pytest.mark.parametrize("absent", [(), (2,), (0, 5)])
def test_against_mmseg(absent):
    import torch

    from carryover.transfer.convert.mmcv_stub import install

    install()
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": [str(k) for k in range(CLASSES)]}
    scenes, samples = [_scene(seed, absent) for seed in range(3)], []
    for truth, predicted in scenes:
        data = {"pred_sem_seg": {"data": predicted}, "gt_sem_seg": {"data": truth}}
        samples.append({k: {"data": torch.from_numpy(v["data"].astype(int))[None]} for k, v in data.items()})
    metric.process({}, samples)
    theirs = metric.compute_metrics(metric.results)
    found = scores(_outcomes(scenes, CLASSES).matrix())
    # mmseg rounds to two decimals.
    assert found.miou == pytest.approx(theirs["mIoU"], abs=0.0051)
    assert found.aacc == pytest.approx(theirs["aAcc"], abs=0.0051)
    assert found.macc == pytest.approx(theirs["mAcc"], abs=0.0051)


def test_a_class_that_is_found_but_not_there_counts_against_miou_only():
    truth = np.zeros((2, 2), dtype=np.uint8)
    predicted = np.array([[0, 0], [0, 1]])
    found = scores(_outcomes([(truth, predicted)], 3).matrix())
    assert found.iou[:2].tolist() == [75.0, 0.0]
    assert math.isnan(found.iou[2])
    assert math.isnan(found.accuracy[1])
    assert (found.miou, found.macc, found.aacc) == (37.5, 75.0, 75.0)


def test_nothing_but_ignored_pixels_is_undefined():
    truth = np.full((4, 4), IGNORED, dtype=np.uint8)
    metrics = _outcomes([(truth, np.zeros((4, 4), dtype=int))], 2).metrics()
    assert [(m.name, m.value) for m in metrics] == [("mIoU", None), ("aAcc", None), ("mAcc", None)]
