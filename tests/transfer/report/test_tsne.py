"""t-SNE points are drawn in the report's own style, and judged by nobody."""

from pathlib import Path

import numpy as np
import pytest

from carryover.transfer.report import write_report
from carryover.transfer.report.tsne import read_points
from carryover.transfer.results.record import Metric, write_record
from tests.transfer.records import record

HEAD = "x,y,class,image\n"


def write_run(run: Path, points: str, classes: int = 3, artifact: str = "tsne.csv") -> Path:
    """Write one t-SNE record as `transfer.tasks.tsne.task` does, and an evaluation beside it."""
    divergence = Metric(name="KL divergence", value=1.25, unit="nats", direction="lower", n=classes)
    made = {"recipe": "tsne", "recipe_hash": "d" * 64, "artifacts": {"points": artifact}}
    write_record(record(task="tsne", metrics=(divergence,), **made), run / "tsne")
    (run / "tsne" / "tsne.csv").write_text(points, encoding="utf-8")
    write_record(record(50.0), run / "finetune")
    return run


def page_of(run: Path) -> str:
    write_report([run], run / "report", formats=["html", "figures"])
    return (run / "report" / "index.html").read_text(encoding="utf-8")


def test_every_point_is_drawn_by_class(tmp_path: Path) -> None:
    places = np.random.default_rng(0).normal(size=(30, 2))
    points = HEAD + "".join(f"{x},{y},<c{i % 3}>,{i}\n" for i, (x, y) in enumerate(places))
    page = page_of(write_run(tmp_path, points))
    assert "t-SNE: UniGrad, shapes. 30 test images of 3 classes as points in the plane" in page
    assert "Kullback-Leibler divergence 1.25 nats" in page
    svg = (tmp_path / "report" / "figures" / "tsne-1.svg").read_text(encoding="utf-8")
    # Thirty points, and one in the legend for each class.
    assert svg.count("<use ") == 30 + 3 and "&lt;c0&gt;" in svg and "<c0>" not in page
    assert (tmp_path / "report" / "figures" / "tsne-1.pdf").is_file()


def test_of_very_many_points_a_part_is_drawn_and_the_page_says_so(tmp_path: Path) -> None:
    points = HEAD + "".join(f"{i % 50},{i // 50},c{i % 2},{i}\n" for i in range(2500))
    assert "834 of 2,500 test images of 2 classes" in page_of(write_run(tmp_path, points))


def test_the_divergence_judges_no_pretraining(tmp_path: Path) -> None:
    run = write_run(tmp_path, HEAD + "0,0,a,0\n1,1,b,1\n")
    write_report([run], run / "report", formats=["md"])
    text = (run / "report" / "report.md").read_text(encoding="utf-8")
    assert "## Fine-tuning, shapes" in text and "KL" not in text


@pytest.mark.parametrize(
    "points",
    ["", HEAD, "a,b\n1,2\n", HEAD + "1,nan,a,0\n", HEAD + "1,two,a,0\n", HEAD + "1\n", "\x00\x01"],
    ids=["nothing", "no row", "other columns", "not finite", "not a number", "half a row", "not text"],
)
def test_a_damaged_file_of_points_is_passed_over(tmp_path: Path, points: str) -> None:
    (tmp_path / "tsne.csv").write_text(points, encoding="utf-8")
    assert read_points(tmp_path / "tsne.csv") is None


def test_points_outside_the_records_directory_are_not_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", HEAD + "0,0,a,0\n1,1,b,1\n", artifact="../elsewhere.csv")
    (run / "elsewhere.csv").write_text(HEAD + "0,0,a,0\n", encoding="utf-8")
    assert "t-SNE: " not in page_of(run)
