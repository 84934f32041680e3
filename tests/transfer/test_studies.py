"""carryover study: the papers' tables beside ours, and the methods' gradients as a table and a picture."""

import csv
from pathlib import Path
from xml.etree import ElementTree

import pytest

from carryover.configs import UserError
from carryover.pretrain.studies.mutual_information import Bound
from carryover.transfer.studies.eqco_mi import ComparedBound, published_bounds, summary
from carryover.transfer.studies.gradients import rounded, short
from tests.transfer.cli.test_cli import carryover


def test_the_published_table_is_whole() -> None:
    published = published_bounds()
    assert len(published) == 40
    # Read off Table 5 of the paper: corners, and one from the middle.
    assert published["infonce", 2.0, 64] == 1.7
    assert published["infonce", 10.0, 512] == 6.0
    assert published["eqco", 6.0, 64] == 5.1
    assert published["eqco", 10.0, 64] == 6.1


def test_the_summary_names_the_farthest_cell() -> None:
    cells = [
        ComparedBound(Bound("infonce", 2.0, 64, 1.75), 1.7),
        ComparedBound(Bound("eqco", 4.0, 128, 3.3), 3.7),
        ComparedBound(Bound("eqco", 4.0, 64, 3.0), None),
    ]
    said = summary(cells)
    assert "0.40 nats (eqco, MI 4, K 128), over 2 cells; 1 of them are within 0.2" in said
    assert "none of these cells" in summary(cells[2:])


def test_eqco_mi_prints_and_writes_the_table_beside_the_published_one(tmp_path: Path) -> None:
    done = carryover("study", "eqco-mi", "--steps", "1", "--estimates", "1", "--out", "table", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(1.7)" in done.stdout and "K = 512" in done.stdout
    with (tmp_path / "table" / "eqco_mi.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert {(r["estimator"], float(r["information"]), int(r["pairs"])) for r in rows} == set(
        published_bounds()
    )
    for row in rows:
        assert float(row["difference"]) == pytest.approx(
            float(row["value"]) - float(row["published"]), abs=2e-4
        )
    text = (tmp_path / "table" / "eqco_mi.md").read_text(encoding="utf-8")
    assert "carryover study eqco-mi --steps 1 --estimates 1 --out table" in text
    assert "seed 0" in text and "| 10 | eqco |" in text


def test_gradients_writes_a_table_and_a_heat_map(tmp_path: Path) -> None:
    done = carryover(
        *("study", "gradients", "--batch-size", "8", "--size", "32", "--width", "16", "--out", "g"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "UniGrad" in done.stdout and "…" not in done.stdout
    with (tmp_path / "g" / "gradients.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [row["other"] for row in rows[: round(len(rows) ** 0.5)]]
    assert len(rows) == len(names) ** 2 and len(names) == len(set(names)) >= 13
    assert all(float(r["cosine"]) == pytest.approx(1) for r in rows if r["method"] == r["other"])
    drawn = "".join(ElementTree.parse(tmp_path / "g" / "gradients.svg").getroot().itertext())
    assert all(name in drawn for name in names)
    assert (tmp_path / "g" / "gradients.png").read_bytes().startswith(b"\x89PNG")
    assert "Cosine similarity" in (tmp_path / "g" / "gradients.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eqco-mi", "--out", "file"], "file"),
        (["eqco-mi", "--steps", "0"], "steps"),
        (["gradients", "--images", "absent"], "absent"),
        (["gradients", "--checkpoint", "absent.pth"], "absent.pth"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_studied_is_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = carryover("study", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr


def test_numbers_are_short_and_keep_two_digits() -> None:
    assert [short(x) for x in (1.0, 0.0734, 12.34, 921.0, 0.00123, 2040.0)] == [
        "1",
        "0.073",
        "12",
        "920",
        "1e-3",
        "2e3",
    ]


def test_a_cosine_of_nothing_has_no_sign() -> None:
    assert [rounded(x) for x in (-0.004, 0.004, -0.996, 0.5)] == ["0.00", "0.00", "-1.00", "0.50"]


def test_an_output_that_is_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    from carryover.transfer.studies.writing import make

    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="file: cannot be an output directory"):
        make(tmp_path / "file")
