"""Every class's accuracy, AP and IoU, folded out of the table that shows their means."""

import re
from pathlib import Path

import numpy as np
import pytest

from carryover.configs.files import sha256_file
from carryover.transfer.report import by_class, write_report
from carryover.transfer.results.outcomes.base import Outcomes, write_outcomes
from carryover.transfer.results.outcomes.detections import Detections, pack
from carryover.transfer.results.outcomes.pixels import Pixels
from carryover.transfer.results.outcomes.rankings import Rankings
from carryover.transfer.results.record import write_record
from tests.transfer.records import record

IOUS = tuple(p / 100 for p in range(50, 100, 5))


def rankings(right: list[bool]) -> Rankings:
    """Two images of ants, two of bees."""
    labels = np.array([0, 0, 1, 1], dtype=np.int32)
    guesses = np.where(right, labels, 1 - labels).astype(np.int32)[None, :, None]
    ids = ("val/ant/1.png", "val/ant/2.png", "val/bee/1.png", "val/bee/2.png")
    return Rankings(
        ids, 2, (1,), ({},), labels, guesses, np.ones((1, 4, 1), np.float32), np.zeros((1, 4), bool)
    )


def detections(found: list[bool]) -> Detections:
    """An image with a cat and a dog, each found or missed at all thresholds; no cow is there."""
    true = pack(np.repeat(np.array(found)[:, None], 10, axis=1))[:, None]
    two, zeros = np.arange(2, dtype=np.int32), np.zeros(2, dtype=np.uint8)
    image, one = np.zeros(2, dtype=np.int32), np.ones((2, 1), dtype=np.int32)
    score = np.array([0.9, 0.8])
    return Detections(
        ("0", "1"), "area", ("cat", "dog", "cow"), IOUS, ({},), zeros, image, two, score, true,
        np.zeros_like(true), zeros, image, two, one,
    )  # fmt: skip


def write(out: Path, outcomes: Outcomes, **stated: object) -> None:
    out.mkdir(parents=True)
    write_outcomes(out / "outcomes.npz", outcomes)
    kept = {
        "artifacts": {"outcomes": "outcomes.npz"},
        "digests": {"outcomes": sha256_file(out / "outcomes.npz")},
    }
    write_record(record(metrics=outcomes.metrics(), **kept, **stated), out)


def test_the_classes_of_every_kind_of_outcome_are_those_of_hand_counted_images() -> None:
    assert rankings([True, True, True, False]).by_class() == {"top1": {"ant": 100.0, "bee": 50.0}}
    found = detections([True, False]).by_class()
    assert found == {"AP": {"cat": 100.0, "dog": 0.0}, "AP50": {"cat": 100.0, "dog": 0.0}}
    # Three pixels of the first class right, one taken for the second; the second's two are right.
    pixels = Pixels(
        ("0",), ("soil", "crop", "weed"), np.zeros(3, np.int32), np.array([0, 0, 1], np.uint8),
        np.array([0, 1, 1], np.uint8), np.array([3, 1, 2]),
    )  # fmt: skip
    assert pixels.by_class() == {
        "IoU": {"soil": 75.0, "crop": pytest.approx(200 / 3)},
        "accuracy": {"soil": 75.0, "crop": 100.0},
    }


def test_a_table_folds_out_class_by_class_with_means_over_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a0", rankings([True, True, True, False]), method="simo", pretrain_recipe="simo", seed=0)
    write(
        tmp_path / "a1", rankings([True, False, True, False]), method="simo", pretrain_recipe="simo", seed=1
    )
    other = {"method": "byol", "pretrain_recipe": "byol", "checkpoint_sha256": "b" * 64}
    write(tmp_path / "b", rankings([True, True, True, True]), **other)
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    folded = page.partition('<details class="classes"><summary>Class by class</summary>')[2].partition(
        "</details>"
    )[0]
    cells = re.findall(r'<th scope="row">(\w+)</th>(.*?)</tr>', folded)
    shown = {name: re.findall(r">([\d.]+)</td>", row) for name, row in cells}
    heads = re.findall(r'<th scope="col"[^>]*>(\w+)</th>', folded.partition("</thead>")[0])
    assert sorted(heads) == ["BYOL", "SiMo"]
    assert {name: dict(zip(heads, row, strict=True)) for name, row in shown.items()} == {
        "ant": {"SiMo": "75.0", "BYOL": "100.0"},
        "bee": {"SiMo": "50.0", "BYOL": "100.0"},
    }
    # Beyond some number of runs the page is not made to wait.
    monkeypatch.setattr(by_class, "_MOST_RUNS", 2)
    write_report([tmp_path], tmp_path / "again")
    assert "Class by class" not in (tmp_path / "again" / "index.html").read_text(encoding="utf-8")


def test_a_note_says_over_how_many_classes_a_mean_is(tmp_path: Path) -> None:
    facts = {"classes": 3, "classes_measured": 2}
    write(tmp_path / "a", detections([True, False]), task="detection", facts=facts)
    write_report([tmp_path], tmp_path / "report")
    assert "means over 2 of 3 classes" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
