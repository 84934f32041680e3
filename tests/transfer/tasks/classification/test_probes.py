"""Frozen-feature evaluations end to end: k-NN, linear by protocol and on cached features, SVM, t-SNE."""

import signal
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from carryover.configs import UserError, load
from carryover.core.formats.canonical import load_canonical
from carryover.core.formats.metrics_log import read_metrics
from carryover.core.training.interrupt import Interrupted
from carryover.transfer.results.outcomes.base import read_outcomes
from carryover.transfer.results.outcomes.rankings import Rankings
from carryover.transfer.results.record import Metric, ResultRecord
from carryover.transfer.tasks.evaluate import evaluate
from carryover.transfer.tasks.linear import cached
from tests.interrupting import stop_after, stop_after_all
from tests.transfer.tasks.classification.samples import CLASSES, write_images

SMALL = ("image.size=32", "image.resize=32", "precision=fp32", "workers=0", "extract_batch=16")


def recipe(name: str, images: Path, *overrides: str) -> Any:
    data = f"data={{name: tiny, kind: imagefolder, root: {images}, test_split: val}}"
    return load("transfer", name, [data, *SMALL, *overrides])


def value(record: ResultRecord, name: str) -> float:
    found: Metric = next(m for m in record.metrics if m.label == name)
    assert found.value is not None
    return found.value


def stored(checkpoint: Path, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the pooled features of the split with so many images, with numpy alone."""
    for folder in (checkpoint.parent / "features").iterdir():
        labels = np.load(folder / "labels.npy")
        if len(labels) == images and (folder / "features.pooled.npy").is_file():
            return np.load(folder / "features.pooled.npy"), labels
    raise AssertionError("no such entry")


def test_knn_agrees_with_scikit_learn_on_the_stored_features(
    images: Path, resnet: Path, tmp_path: Path
) -> None:
    record = evaluate(recipe("knn_cifar10", images, "k=[1, 20]"), resnet, tmp_path)
    assert record.task == "knn"
    assert record.train_images == 60
    assert [m.label for m in record.metrics] == [
        "top1 k=1 T=0.07",
        "top1 k=1 T=0.1",
        "top1 k=20 T=0.07",
        "top1 k=20 T=0.1",
    ]
    (x, y), (test_x, test_y) = stored(resnet, 60), stored(resnet, 24)
    for k in (1, 20):
        for temperature in (0.07, 0.1):
            oracle = KNeighborsClassifier(
                k, metric="cosine", weights=lambda d, t=temperature: np.exp((1 - d) / t)
            )
            expected = 100 * oracle.fit(x, y).score(test_x, test_y)
            assert value(record, f"top1 k={k} T={temperature}") == pytest.approx(expected)


def test_knn_over_few_labels_says_so_and_refuses_too_large_a_k(
    images: Path, resnet: Path, tmp_path: Path
) -> None:
    few = ("labels={name: per_class, images: 3}", "k=[5]")
    record = evaluate(recipe("knn_cifar10", images, *few), resnet, tmp_path / "few")
    assert (record.train_images, record.label_fraction) == (18, 0.3)
    with pytest.raises(UserError, match="200 neighbors of 60"):
        evaluate(recipe("knn_cifar10", images), resnet, tmp_path / "many")


PROTOCOL = (
    "mode.schedule={name: cosine, epochs: 4, per: step}",
    "mode.batch_size=16",
    "mode.lr_per=16",
    "mode.base_lrs=[0.3]",
    "mode.held_out=null",
)


def test_a_linear_classifier_learns_and_leaves_the_network_as_it_was(
    images: Path, resnet: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, _ = load_canonical(resnet)
    record = evaluate(recipe("linear_cifar10", images, *PROTOCOL), resnet, tmp_path)
    assert "the loss ended" not in caplog.text
    assert (record.task, record.selection) == ("linear", "last")
    assert record.facts["mode"] == "protocol"
    assert record.facts["unchanged_tensors"] == len(before)
    assert value(record, "top1") > 60
    assert value(record, "top5") > value(record, "top1")


def test_a_loss_that_rose_is_warned_of(
    images: Path, resnet: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steady = "mode.schedule={name: multistep, epochs: 3, milestones: [2], gamma: 0.9}"
    wild = ("mode.base_lrs=[3000.0]", steady)
    evaluate(recipe("linear_cifar10", images, *PROTOCOL, *wild), resnet, tmp_path)
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[-1] > losses[0]
    assert f"the loss ended at {losses[-1]:.4g}, above the {losses[0]:.4g}" in caplog.text


GRID = ("mode.base_lrs=[0.3, 0.003]", "mode.weight_decays=[0.0, 0.1]", "mode.depths=[layer3, pooled]")


def test_many_heads_are_trained_at_once_and_one_is_chosen_on_held_out_images(
    images: Path, resnet: Path, tmp_path: Path
) -> None:
    once = ("mode.held_out=0.2", "mode.refit=false")
    record = evaluate(recipe("linear_cifar10", images, *PROTOCOL, *GRID, *once), resnet, tmp_path)
    assert record.facts["classifiers"] == 8
    assert (record.selection, record.selected_on) == (
        "best",
        "held-out 20 % of the labelled training images",
    )
    assert (record.train_images, record.label_fraction) == (48, 0.8)
    choices = pd.read_csv(tmp_path / "choices.csv")
    best = choices.loc[choices["held_out_top1"].idxmax()]
    assert record.facts["classifier"] == f"{best.depth} lr={best.lr:g} wd={best.weight_decay:g}"
    with pytest.raises(UserError, match="8 classifiers need held_out"):
        recipe("linear_cifar10", images, *PROTOCOL, *GRID)


def test_the_chosen_head_is_trained_again_on_all_labels_wherever_it_is_interrupted(
    images: Path, resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = [load("transfer", f"linear_{name}") for name in ("cifar10", "cifar100", "tiny_imagenet")]
    assert all(config.mode.refit and config.mode.held_out for config in shipped)
    config = recipe("linear_cifar10", images, *PROTOCOL, *GRID, "mode.held_out=0.2", "log_every=1")
    whole = evaluate(config, resnet, tmp_path / "whole")
    assert (whole.train_images, whole.label_fraction, whole.selection) == (60, 1.0, "best")
    choices = pd.read_csv(tmp_path / "whole" / "choices.csv")
    best = choices.loc[choices["held_out_top1"].idxmax()]
    assert (whole.facts["classifiers"], whole.facts["held_out_images"]) == (8, 12)

    # As if no other classifier had ever been trained, and no image held out.
    rate = f"mode.base_lrs=[{best.lr}]", f"mode.weight_decays=[{best.weight_decay}]"
    alone = recipe("linear_cifar10", images, *PROTOCOL, *rate, f"mode.depths=[{best.depth}]", "log_every=1")
    assert evaluate(alone, resnet, tmp_path / "alone").metrics == whole.metrics
    logs = [read_metrics(tmp_path / out / "metrics.jsonl") for out in ("whole", "alone")]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]

    for steps, left in ((5, "selection/checkpoint.pt"), (17, "checkpoint.pt")):
        out = tmp_path / str(steps)
        stop_after_all(steps, signal.SIGTERM, monkeypatch)
        with pytest.raises(Interrupted):
            evaluate(config, resnet, out)
        monkeypatch.undo()
        assert [p.name for p in out.rglob("checkpoint.pt")] == ["checkpoint.pt"] and (out / left).is_file()
        assert evaluate(config, resnet, out).metrics == whole.metrics
        assert not list(out.rglob("checkpoint.pt*"))
        for log in ("metrics.jsonl", "selection/metrics.jsonl"):
            rows = [read_metrics(at / log) for at in (tmp_path / "whole", out)]
            assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def test_an_interrupted_linear_evaluation_resumes_exactly(
    images: Path, resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe("linear_cifar10", images, *PROTOCOL, "mode.schedule.epochs=2", "log_every=1")
    whole = evaluate(config, resnet, tmp_path / "whole")
    stop_after(6, signal.SIGTERM, monkeypatch)
    with pytest.raises(Interrupted):
        evaluate(config, resnet, tmp_path / "parts")
    monkeypatch.undo()
    parts = evaluate(config, resnet, tmp_path / "parts")
    assert parts.metrics == whole.metrics
    losses = [
        [(row["step"], row["loss"]) for row in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_cached_linear_evaluation_is_scikit_learns_regression_at_the_chosen_cost(
    images: Path, resnet: Path, tmp_path: Path
) -> None:
    config = recipe("linear_cached_cifar10", images, "mode.costs=[0.01, 1.0]", "mode.tolerance=1e-6")
    record = evaluate(config, resnet, tmp_path)
    assert record.task == "linear_cached"
    assert str(record.facts["mode"]).startswith("cached")
    assert record.selected_on == "held-out 10 % of the labelled training images"
    (x, y), (test_x, test_y) = stored(resnet, 60), stored(resnet, 24)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation[deviation == 0] = 1
    oracle = LogisticRegression(C=float(record.facts["C"] or 0), tol=1e-8, max_iter=5000)
    oracle.fit((x - mean) / deviation, y)
    assert value(record, "top1") == pytest.approx(100 * oracle.score((test_x - mean) / deviation, test_y))


def test_a_tolerance_that_float32_cannot_reach_is_reached_by_small_problems(
    images: Path,
    resnet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = recipe("linear_cached_cifar10", images, "mode.costs=[100.0]", "mode.tolerance=1e-9")
    record = evaluate(config, resnet, tmp_path / "float64")
    assert "stopped at a gradient" not in caplog.text and float(record.facts["gradient"] or 1) <= 1e-9
    monkeypatch.setattr(cached, "DOUBLE_UP_TO", 0)
    record = evaluate(config, resnet, tmp_path / "float32")
    assert "in float32 rounding keeps it there" in caplog.text and float(record.facts["gradient"] or 0) > 1e-9


def test_the_store_is_shared_between_protocols(
    images: Path, resnet: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = f"store={tmp_path / 'store'}"
    with caplog.at_level("INFO"):
        evaluate(recipe("knn_cifar10", images, "k=[5]", shared), resnet, tmp_path / "knn")
        assert "computing features of 60 images" in caplog.text
        caplog.clear()
        evaluate(recipe("linear_cached_cifar10", images, shared), resnet, tmp_path / "linear")
    assert "computing" not in caplog.text
    assert len(list((tmp_path / "store").iterdir())) == 2


def test_a_picture_of_the_features_is_drawn_from_the_store(
    images: Path, resnet: Path, tmp_path: Path
) -> None:
    config = recipe("tsne_cifar10", images, "images=18", "perplexity=5")
    record = evaluate(config, resnet, tmp_path)
    points = pd.read_csv(tmp_path / "tsne.csv")
    assert points["class"].value_counts().to_dict() == dict.fromkeys(CLASSES, 3)
    assert (tmp_path / "tsne.png").read_bytes().startswith(b"\x89PNG")
    assert record.metrics[0].direction == "none"
    with pytest.raises(UserError, match="perplexity"):
        evaluate(recipe("tsne_cifar10", images, "images=18"), resnet, tmp_path / "other")


@pytest.fixture
def voc(images: Path, tmp_path: Path) -> Path:
    """A VOC folder whose images show one class each, made of the image folder."""
    root = tmp_path / "VOC2007"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for split, folder in (("trainval", "train"), ("test", "val")):
        ids = []
        for path in sorted((images / folder).rglob("*.png")):
            (root / "JPEGImages" / f"{folder}_{path.stem}.jpg").write_bytes(path.read_bytes())
            (root / "Annotations" / f"{folder}_{path.stem}.xml").write_text(
                f"<annotation><filename>{escape(path.name)}</filename>"
                "<size><width>32</width><height>32</height><depth>3</depth></size>"
                f"<object><name>{path.parent.name}</name><difficult>0</difficult>"
                "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>32</xmax><ymax>32</ymax></bndbox></object>"
                "</annotation>"
            )
            ids.append(f"{folder}_{path.stem}")
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return root


def test_svms_are_trained_on_a_voc_folder(voc: Path, resnet: Path, tmp_path: Path) -> None:
    data = f"data={{root: {voc}, classes: [{', '.join(CLASSES)}]}}"
    shrunk = [*SMALL, "image.pixel_mean=null", "image.pixel_std=null", "costs=[0.1, 10.0]"]
    low_shot = "low_shot={positives: [1, 4], draws: 2}"
    config = load("transfer", "svm_voc07", [data, *shrunk, low_shot])
    record = evaluate(config, resnet, tmp_path / "out")
    assert (record.task, record.split, record.train_images) == ("svm", "2007/test", 60)
    assert [m.label for m in record.metrics] == ["mAP", "mAP positives=1", "mAP positives=4"]
    classes = pd.read_csv(tmp_path / "out" / "classes.csv")
    assert list(classes["name"]) == CLASSES
    assert value(record, "mAP") == pytest.approx(100 * classes["test_ap"].mean())
    assert value(record, "mAP") > 60
    assert len(pd.read_csv(tmp_path / "out" / "low_shot.csv")) == 4


@pytest.mark.parametrize("name", ["knn_imagenet", "svm_voc07", "linear_moco", "tsne_cifar10"])
def test_a_missing_root_is_refused_by_path(name: str, resnet: Path, tmp_path: Path) -> None:
    config = load("transfer", name, [f"data.root={tmp_path}/nowhere"])
    with pytest.raises(UserError, match=rf"{tmp_path}/nowhere"):
        evaluate(config, resnet, tmp_path / "out")


def test_the_networks_features_do_not_depend_on_torchs_global_seed(
    images: Path, resnet: Path, tmp_path: Path
) -> None:
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = recipe("linear_cifar10", images, *PROTOCOL, "mode.schedule.epochs=1")
        results.append(evaluate(config, resnet, tmp_path / str(seed)).metrics)
    assert results[0] == results[1]


def test_a_split_of_its_own_is_chosen_on_where_the_recipe_names_one(resnet: Path, tmp_path: Path) -> None:
    for split, per_class, seed in (("train", 6, 0), ("choose", 3, 2), ("val", 4, 1)):
        write_images(tmp_path / "images" / split, per_class, seed)
    own, two = "data.selection_split=choose", ("mode.held_out=0.2", "mode.base_lrs=[0.3,0.003]")
    runs = {
        "cached": recipe("linear_cached_cifar10", tmp_path / "images", own),
        "protocol": recipe("linear_cifar10", tmp_path / "images", own, *PROTOCOL, *two),
    }
    for name, config in runs.items():
        record = evaluate(config, resnet, tmp_path / name)
        assert (record.selection, record.selected_on) == ("best", "split choose")
        assert record.facts["held_out_images"] == 18 and record.train_images == 36, "nothing is held out"
        assert record.protocol is not None and record.protocol["data"]["selection_split"] == "choose"
    # The classifier of cached mode is scikit-learn's, to the last image: it is fitted in float64.
    (x, y), (test_x, _) = stored(resnet, 36), stored(resnet, 24)
    mean, deviation = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    cost = evaluate(runs["cached"], resnet, tmp_path / "cached").facts["C"]
    oracle = LogisticRegression(C=cost, tol=1e-10, max_iter=10_000)
    scaled = [(v - mean) / np.where(deviation > 0, deviation, 1) for v in (x, test_x)]
    expected = oracle.fit(scaled[0], y).predict(scaled[1])
    outcomes = read_outcomes(tmp_path / "cached" / "outcomes.npz")
    assert isinstance(outcomes, Rankings) and np.array_equal(outcomes.guesses[0, :, 0], expected)
    for wrong, words in {"val": "another split than those", "nowhere": "nowhere: no such folder"}.items():
        with pytest.raises(UserError, match=words):
            config = recipe("linear_cached_cifar10", tmp_path / "images", f"data.selection_split={wrong}")
            evaluate(config, resnet, tmp_path / wrong)
