"""Figures of what accuracy takes: drawn where there is something to compare, saying every point in words."""

from pathlib import Path
from typing import Any

import pytest

from carryover.transfer.report.against import against_cost, against_images, against_labels
from carryover.transfer.report.drawing import Picture
from carryover.transfer.report.tables import build_tables
from carryover.transfer.results.record import Metric, ResultRecord
from tests.transfer.records import record
from tests.transfer.report.gathered import gathered

METHODS = {"random": "0", "simo": "1", "unigrad": "2"}


def run(method: str, value: float = 50.0, **changes: Any) -> ResultRecord:
    own = {"pretrain_recipe": method, "checkpoint_sha256": METHODS[method] * 64}
    return record(value, method=method, **(own | changes))


def detector(method: str, ap: float, images: int, **changes: Any) -> ResultRecord:
    fields: dict[str, Any] = {
        "task": "detection",
        "dataset": f"VOC {images}",
        "recipe": f"voc_{images}",
        "recipe_hash": f"{images % 7}" * 64,
        "metrics": (Metric(name="AP", value=ap, n=4952),),
        "model": "Faster R-CNN C4",
        "train_images": images,
    }
    return run(method, **(fields | changes))


def cost_pictures(*records: ResultRecord, directory: Path | None = None) -> list[Picture]:
    collection = gathered(*records)
    return against_cost(build_tables(collection), collection, directory)


def test_accuracy_is_drawn_against_gpu_hours_as_svg_and_pdf(tmp_path: Path) -> None:
    records = [
        run("random", 40.0),
        run("simo", 60.0, pretrain_gpu_hours=30.0, pretrain_wall_seconds=9e9),
        run("unigrad", 65.0, pretrain_gpu_hours=90.0),
    ]
    (picture,) = cost_pictures(*records, directory=tmp_path)
    assert picture.alternative == (
        "one_percent: Top 1 against cost. Random initialization, which costs nothing: 40.0;"
        " SiMo: 60.0 after 30 GPU hours; UniGrad: 65.0 after 90 GPU hours"
    )
    assert "pretraining, GPU hours" in picture.svg
    assert (tmp_path / "cost-1-1.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "cost-1-1.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_without_a_gpu_the_clock_counts_and_short_times_are_in_minutes() -> None:
    (picture,) = cost_pictures(
        run("simo", 60.0, pretrain_wall_seconds=90.0, pretrain_gpu_hours=0.0),
        run("unigrad", 65.0, pretrain_wall_seconds=600.0),
    )
    assert "SiMo: 60.0 after 1.5 wall minutes; UniGrad: 65.0 after 10 wall minutes" in picture.alternative


def test_one_pretraining_of_known_cost_is_no_figure() -> None:
    assert cost_pictures(run("simo"), run("unigrad", pretrain_gpu_hours=4.0)) == []


def test_ap_is_drawn_against_the_training_images_of_one_detector() -> None:
    records = [
        detector(m, ap + n / 5000, n) for m, ap in (("simo", 50.0), ("unigrad", 55.0)) for n in (5000, 16500)
    ]
    (picture,) = against_images(gathered(*records), None)
    assert picture.alternative == (
        "Faster R-CNN C4, VOC 5000, VOC 16500: AP against images. SiMo: 5,000 51.0, 16,500 53.3;"
        " UniGrad: 5,000 56.0, 16,500 58.3"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "Mask R-CNN FPN"},
        {"split": "2012/val"},
        {"backend": "detectron2"},
        {"metrics": (Metric(name="AP", value=50.0, n=100),)},
        {"train_images": None},
    ],
    ids=["another detector", "another split", "another backend", "other test images", "amount not said"],
)
def test_points_that_differ_in_more_than_their_training_are_not_joined(changes: dict[str, Any]) -> None:
    records = [detector("simo", 50.0, 5000), detector("simo", 53.0, 16500, **changes)]
    assert against_images(gathered(*records), None) == []


def test_accuracy_is_drawn_against_the_share_of_labels() -> None:
    records = [
        run("simo", value, recipe=f"r{share}", recipe_hash=digit * 64, label_fraction=share)
        for share, value, digit in ((0.01, 50.0, "c"), (0.1, 70.0, "d"))
    ]
    (picture,) = against_labels(gathered(*records), None)
    assert picture.alternative.endswith("against labels. SiMo: 1 % 50.0, 10 % 70.0")
