"""Rows that were removed from a pipeline's file: said, left on disk, and not in its report."""

import csv
from pathlib import Path

import pytest

from carryover.transfer.cli.commands import print_report
from carryover.transfer.cli.run_commands import run_pipeline
from tests.transfer.tasks.classification.samples import write_checkpoint, write_images

_HEAD = "checkpoints:\n"
_ROW = "- {{path: {path}, label: {label}}}\n"
_TAIL = """convert: [canonical]
evaluate:
- recipe: demo_knn
  seeds: SEEDS
  overrides: [data.root=data, "k=[3]", image.size=32, image.resize=32, workers=0]
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_images(tmp_path / "data" / "train", 4, seed=0)
    write_images(tmp_path / "data" / "val", 2, seed=1)
    for seed in (0, 1):
        write_checkpoint(tmp_path / f"{seed}.safetensors", seed)
    return tmp_path


def pipeline(files: Path, rows: dict[str, int], seeds: str) -> str:
    text = _HEAD + "".join(_ROW.format(path=f"{n}.safetensors", label=label) for label, n in rows.items())
    (files / "pipe.yaml").write_text(text + _TAIL.replace("SEEDS", seeds), encoding="utf-8")
    return str(files / "pipe.yaml")


def reported(run: Path) -> set[tuple[str, str]]:
    with (run / "report/results.csv").open(encoding="utf-8") as file:
        return {(row["pretrain_label"], row["seed"]) for row in csv.DictReader(file)}


def test_what_a_pipeline_no_longer_names_is_said_and_left_out_of_its_report(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = files / "run"
    whole = pipeline(files, {"kept": 0, "dropped": 1}, "[0, 1]")
    assert run_pipeline(whole, run, "inline", []) == 0
    assert "no longer" not in capsys.readouterr().err
    assert reported(run) == {("kept", "0"), ("kept", "1"), ("dropped", "0"), ("dropped", "1")}

    fewer = pipeline(files, {"kept": 0}, "[1]")
    told = (
        f"5 stages in {run} are no longer in the pipeline; they stay on disk and are left out of the report:"
        " convert/dropped, evaluate/dropped/demo_knn-seed0, evaluate/dropped/demo_knn-seed1,"
        " evaluate/kept/demo_knn-seed0, import/dropped"
    )
    assert run_pipeline(fewer, run, "inline", [], dry_run=True) == 0
    said = capsys.readouterr()
    assert told in said.err.splitlines() and "1 to repeat" in said.out, "the report"
    assert len(reported(run)) == 4, "a dry run changes nothing"
    assert run_pipeline(fewer, run, "inline", []) == 0
    assert told in capsys.readouterr().err.splitlines()
    assert reported(run) == {("kept", "1")}
    page = (run / "report/index.html").read_text(encoding="utf-8")
    assert "dropped" not in page.partition("</style>")[2]

    # The same rows, by the command that writes into the same folder; the others where they are asked for.
    assert print_report([run], None, "csv", "title")
    assert told in capsys.readouterr().err.splitlines() and reported(run) == {("kept", "1")}
    former = run / "stages/evaluate/dropped"
    assert print_report([run, former], run / "report", "csv", "title")
    assert reported(run) == {("kept", "1"), ("dropped", "0"), ("dropped", "1")}
    capsys.readouterr()

    # Named again, they are there again: nothing was deleted, and nothing is evaluated twice.
    assert run_pipeline(pipeline(files, {"kept": 0, "dropped": 1}, "[0, 1]"), run, "inline", []) == 0
    said = capsys.readouterr()
    assert "no longer" not in said.err and said.err.count(": skipped (") == 8
    assert len(reported(run)) == 4


def test_what_only_leaves_out_is_said_in_its_words(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, path = files / "run", pipeline(files, {"kept": 0, "dropped": 1}, "[0]")
    assert run_pipeline(path, run, "inline", []) == 0
    capsys.readouterr()
    assert run_pipeline(path, run, "inline", ["only=[dropped]"], dry_run=True) == 0
    assert (
        f"3 stages in {run} are not in the pipeline with only=[dropped]; they stay" in capsys.readouterr().err
    )
