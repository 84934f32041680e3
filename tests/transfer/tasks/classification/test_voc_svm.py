"""VOC07's SVM protocol against scikit-learn, the VOC rule by hand, and the draws it promises."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC
from torchvision.transforms import v2 as tv

from carryover.configs import UserError, load
from carryover.core.backbones.build import build_backbone, feature_maps
from carryover.core.data.objects.dataset import Annotation, DetectionDataset, DetectionImage
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.training.distributed import Ranks
from carryover.transfer.results.outcomes.class_scores import ClassScores, average_precision
from carryover.transfer.tasks.frozen.backbone import Frozen
from carryover.transfer.tasks.svm.config import SvmConfig
from carryover.transfer.tasks.svm.model import Split, full, low_shot, normalize, presence
from carryover.transfer.tasks.svm.task import _split

CLASSES = ("a", "b", "c")


def image(objects: list[tuple[int, bool]]) -> DetectionImage:
    n = len(objects)
    annotation = Annotation(
        boxes=np.zeros((n, 4), np.float32),
        labels=np.array([o[0] for o in objects], np.int64),
        difficult=np.array([o[1] for o in objects], bool),
        iscrowd=np.zeros(n, bool),
        area=np.zeros(n, np.float32),
    )
    return DetectionImage("x", Path("x.jpg"), 4, 4, annotation)


def test_an_image_shows_a_class_unless_all_its_objects_of_it_are_difficult() -> None:
    images = (image([(0, False), (0, True), (1, True)]), image([]))
    table = presence(DetectionDataset("d", CLASSES, images, "voc"))
    assert table.tolist() == [[1, 0, -1], [-1, -1, -1]]


def test_the_area_is_at_least_scikit_learns_step_area_and_equal_when_precision_falls() -> None:
    scores, present = np.array([5.0, 4, 3, 2, 1]), np.array([1, 1, 0, 1, 0], bool)
    assert average_precision(scores, present, "area") == pytest.approx(
        average_precision_score(present, scores)
    )
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores, present = generator.normal(size=50), generator.random(50) < 0.3
        step = average_precision_score(present, scores)
        assert step <= average_precision(scores, present, "area") <= 1


def test_the_eleven_points_are_those_of_the_voc_development_kit() -> None:
    # Hits at ranks 1 and 4 of two: precision 1 up to recall 0.5 (six points), 0.5 beyond (five points).
    scores, present = np.array([4.0, 3, 2, 1]), np.array([1, 0, 0, 1], bool)
    assert average_precision(scores, present, "11point") == pytest.approx((6 * 1.0 + 5 * 0.5) / 11)
    assert average_precision(scores, present, "area") == pytest.approx(0.75)


def test_features_are_those_of_the_benchmark_written_out(tmp_path: Path) -> None:
    generator, network = np.random.default_rng(0), build_backbone(BackboneConfig(arch="resnet50")).eval()
    paths = [tmp_path / "wide.png", tmp_path / "tall.png"]
    for path, (height, width) in zip(paths, ((150, 250), (300, 180))):
        coarse = generator.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    config = load("transfer", "svm_voc07", ["precision=fp32", "workers=0", f"store={tmp_path}"])
    assert isinstance(config, SvmConfig)
    augment = config.image.augment((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    source: Any = SimpleNamespace(backbone=network, digest="0" * 64, path=tmp_path / "none")
    frozen = Frozen(config, source, augment, tmp_path, Ranks(0, 1, torch.device("cpu")))
    shown = tuple(DetectionImage(p.stem, p, 1, 1, image([]).annotation) for p in paths)
    found = _split(DetectionDataset("d", CLASSES, shown, "voc"), frozen).features

    # VISSL: Resize(256), Resize([224, 224]), ToTensor, Normalize; AvgPool2d([6, 6], 1, 0) of res5.
    expected = []
    for path in paths:
        picture = tv.Resize([224, 224])(tv.Resize(256)(Image.open(path)))
        x = (np.asarray(picture) / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.no_grad():
            res5 = feature_maps(network, torch.tensor(x, dtype=torch.float32).permute(2, 0, 1)[None])[
                "layer4"
            ]
        cells = res5[0].numpy().astype(np.float64)
        assert cells.shape == (2048, 7, 7)
        windows = [cells[:, i : i + 6, j : j + 6].mean(axis=(1, 2)) for i in (0, 1) for j in (0, 1)]
        expected.append(np.stack(windows, axis=1).ravel())
    assert found.shape == (2, 8192)
    # What is left is torchvision's rounding of pictures as tensors and as PIL's.
    np.testing.assert_allclose(found, normalize(np.array(expected)), atol=5e-5)


def splits() -> tuple[Split, Split]:
    generator = np.random.default_rng(0)
    made = []
    for n in (120, 60):
        table = np.where(generator.random((n, 3)) < 0.35, 1, -1).astype(np.int8)
        table[generator.random((n, 3)) < 0.1] = 0
        x = (table == 1) @ np.eye(3, 8) * 2 + generator.normal(size=(n, 8))
        made.append(Split(normalize(x), table, CLASSES))
    return made[0], made[1]


def test_each_class_is_tested_at_the_cost_that_cross_validates_best() -> None:
    train, test = splits()
    results = full(train, test, [0.01, 1.0], seed=0, jobs=1)
    scores = np.stack([r.scores for r in results], axis=1)
    outcomes = ClassScores(("",) * len(scores), "area", ({},), test.presence, scores[None])
    (aps,) = outcomes.aps() / 100
    assert outcomes.metrics()[0].value == pytest.approx(100 * aps.mean(), abs=1e-9)
    for c, result in enumerate(results):
        y = np.where(train.presence[:, c] == 1, 1, -1)
        svm = LinearSVC(C=result.cost, class_weight={1: 2, -1: 1}, max_iter=2000, random_state=0)
        kept = test.presence[:, c] != 0
        scores = svm.fit(train.features, y).decision_function(test.features[kept])
        expected = average_precision(scores, test.presence[kept, c] == 1, "area")
        assert aps[c] == pytest.approx(expected, abs=1e-9)
        assert aps[c] > 0.5


def test_more_positives_help_and_one_draw_repeats() -> None:
    train, test = splits()
    few = [low_shot(train, test, [1.0] * 3, 1, draw, jobs=1) for draw in range(5)]
    many = [low_shot(train, test, [1.0] * 3, 20, draw, jobs=1) for draw in range(5)]
    params = ({"positives": 1},) * 5 + ({"positives": 20},) * 5
    outcomes = ClassScores(("",) * 60, "area", params, test.presence, np.stack([*few, *many]))
    one, twenty = outcomes.metrics()
    assert (one.label, twenty.label) == ("mAP positives=1", "mAP positives=20")
    assert one.value < twenty.value
    assert np.array_equal(few[0], low_shot(train, test, [1.0] * 3, 1, 0, jobs=1))
    assert len({of.tobytes() for of in few}) > 1


def test_too_few_images_of_a_class_are_refused_by_name() -> None:
    train, test = splits()
    with pytest.raises(UserError, match="a draw of 90"):
        low_shot(train, test, [1.0] * 3, 90, 0, jobs=1)
    rare = train.presence.copy()
    rare[:, 1] = -1
    rare[:2, 1] = 1
    with pytest.raises(UserError, match=r"'b' \(2\)"):
        full(Split(train.features, rare, CLASSES), test, [1.0], 0, 1)
    unseen = test.presence.copy()
    unseen[:, 1] = -1
    with pytest.raises(UserError, match="nothing of 'b'"):
        full(train, Split(test.features, unseen, CLASSES), [1.0], 0, 1)
