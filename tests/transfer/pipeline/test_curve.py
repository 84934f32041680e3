"""`carryover curve`: which points it lays out and leaves out; that it runs, resumes and is tabled."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from carryover.configs import UserError, load
from carryover.core.data.shapes.write import ShapesPaths, write_shapes
from carryover.pretrain.trainer import train
from carryover.transfer.cli.main import app
from carryover.transfer.pipeline.curve import Asked, curve
from carryover.transfer.report.cells import Cell, Source, joint_interval

SMALL = ("image.size=32", "image.resize=32", "precision=fp32", "workers=0", "device=cpu")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> ShapesPaths:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", n_train=160, n_val=40, n_detection=12)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mine"
    return train(load("pretrain", "random_r18", ["augment.view.size=32", "seed=7", "device=cpu"]), out)


def _points(plain: dict[str, Any]) -> dict[str, list[int]]:
    return {e["label"]: e["seeds"] for e in plain["evaluate"]}


def test_every_recipe_has_a_point_at_every_share_that_the_data_can_give(
    shapes: ShapesPaths, checkpoint: Path
) -> None:
    root = f"data.root={shapes.classification}"
    asked = Asked((checkpoint,), ("small_knn", "small_linear", "small_finetune"), seeds=2)
    plain, left_out = curve(Asked(**{**asked.__dict__, "overrides": (root, *SMALL)}))
    points = _points(plain)
    # 16 images of every class: 1 % and 2 % are none; 5 % is one, and one cannot be held out of it.
    assert [p for p in points if p.startswith("small_finetune")] == [
        f"small_finetune-{n}pct" for n in ("5", "10", "20", "50", "100")
    ]
    assert [p for p in points if p.startswith("small_linear")] == [
        f"small_linear-{n}pct" for n in ("10", "20", "50", "100")
    ]
    assert points["small_finetune-10pct"] == [0, 1]
    assert points["small_knn-100pct"] == [0], "nothing is drawn, and nothing trained"
    assert len(left_out) == 7
    assert "small_knn with 1 % of the labels: some class would have no labeled image" in left_out
    assert any("a single labeled image" in line for line in left_out)


def test_it_compares_with_random_weights_of_the_same_network_and_a_supervised_one_if_told(
    shapes: ShapesPaths, checkpoint: Path
) -> None:
    asked = Asked((checkpoint,), ("small_knn",), (1.0,), 1, overrides=(f"data.root={shapes.classification}",))
    plain, _ = curve(asked)
    assert [c["label"] for c in plain["checkpoints"]] == ["mine"]
    assert [p["label"] for p in plain["pretrain"]] == ["random"]
    assert "backbone.arch=resnet18" in plain["pretrain"][0]["overrides"]
    given, _ = curve(Asked(**{**asked.__dict__, "supervised": checkpoint}))
    assert [c["label"] for c in given["checkpoints"]] == ["mine", "supervised"]
    trained, _ = curve(Asked(**{**asked.__dict__, "train_supervised": True}))
    assert [(p["recipe"], p["label"]) for p in trained["pretrain"]] == [
        ("random_r50", "random"),
        ("small_supervised", "supervised"),
    ]
    with pytest.raises(UserError, match="which cannot be compared with"):
        curve(Asked(**{**asked.__dict__, "supervised": checkpoint, "train_supervised": True}))


def test_detectors_and_segmenters_take_parts_of_the_training_images(
    shapes: ShapesPaths, checkpoint: Path
) -> None:
    asked = Asked((checkpoint,), ("demo_faster_fpn",), (0.5, 1.0), 1)
    plain, _ = curve(Asked(**{**asked.__dict__, "overrides": (f"data.root={shapes.detection}",)}))
    assert [e["overrides"][-1] for e in plain["evaluate"]] == ["label_fraction=0.5", "label_fraction=1.0"]


def test_a_key_that_no_recipe_has_is_answered_with_the_nearest(shapes: ShapesPaths, checkpoint: Path) -> None:
    overrides = (f"data.root={shapes.classification}", "image.sise=32")
    with pytest.raises(UserError, match=r"did you mean 'size'|image\.size"):
        curve(Asked((checkpoint,), ("small_knn",), overrides=overrides))


def test_checkpoints_of_one_name_are_told_apart(shapes: ShapesPaths, checkpoint: Path) -> None:
    twice = Asked((checkpoint, checkpoint), ("small_knn",), (1.0,))
    plain, _ = curve(Asked(**{**twice.__dict__, "overrides": (f"data.root={shapes.classification}",)}))
    assert [c["label"] for c in plain["checkpoints"]] == ["mine", "mine-again1"]


@pytest.mark.slow
def test_the_command_runs_resumes_and_tables_every_point_with_its_interval_and_cost(
    shapes: ShapesPaths, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "curve"
    words = ["curve", str(checkpoint), f"data.root={shapes.classification}", *SMALL]
    words += ["-r", "small_knn", "--labels", "10,100", "--seeds", "2", "--out", str(out)]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    assert "Against the share of the labels" in first.output
    with (out / "report" / "curve.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["pretraining"], r["train_images"]) for r in rows] == [
        ("random", "20.0"),
        ("mine", "20.0"),
        ("random", "160.0"),
        ("mine", "160.0"),
    ]
    for row in rows:
        assert 0 <= float(row["low"]) <= float(row["value"]) <= float(row["high"]) <= 100
        assert float(row["seconds"]) > 0
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "against labels" in page
    records = sorted(out.glob("stages/evaluate/**/result.json"))
    before = [path.stat().st_mtime_ns for path in records]
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
    assert [path.stat().st_mtime_ns for path in records] == before
    plain = yaml.safe_load((out / "curve.yaml").read_text(encoding="utf-8"))
    assert set(plain) == {"checkpoints", "pretrain", "convert", "evaluate", "report_title"}


def test_intervals_hold_the_variance_of_images_once_and_that_of_seeds_over_their_number() -> None:
    def source(value: float) -> Source:
        return Source(1, Path("r"), "", None, 0, value, value - 1.96, value + 1.96)

    cell = Cell((source(50.0), source(54.0)), (50.0, 54.0), "evaluation seeds")
    found = joint_interval(cell)
    assert found is not None
    # Images: a deviation of 1. Seeds: a variance of 8, over 2 of them.
    assert found[1] - 52 == pytest.approx(1.96 * (1 + 4) ** 0.5, rel=1e-3)
    alone = Cell((source(50.0),), (50.0,), "evaluation seeds")
    assert joint_interval(alone) == (50 - 1.96, 50 + 1.96)
    assert joint_interval(Cell((), (), "evaluation seeds")) is None
