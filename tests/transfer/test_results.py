"""A record is whole or it is a problem with a path; the frame holds every number once."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from carryover.slurm import Graph, Ledger, Stage
from carryover.slurm.ledger import StageRecord
from carryover.transfer.results.reading import read_records, to_frame
from carryover.transfer.results.record import Metric, load_record, write_record
from tests.transfer.records import record


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = record(61.5)
    path = write_record(written, tmp_path / "run")
    found, problems = read_records([tmp_path])
    assert [s.record for s in found] == [written] and found[0].path == path and not problems
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_a_best_result_names_the_split_it_was_selected_on() -> None:
    with pytest.raises(ValidationError, match="must name the split"):
        record(selection="best")
    with pytest.raises(ValidationError, match="no result"):
        record(selection="best", selected_on="val", split="val")
    assert record(selection="best", selected_on="held-out tenth").selection == "best"


@pytest.mark.parametrize("damage", ["torn", "edited", "a better number", "old", "not json"])
def test_a_damaged_record_is_a_problem_and_stops_no_other(tmp_path: Path, damage: str) -> None:
    write_record(record(), tmp_path / "good")
    path = write_record(record(), tmp_path / "bad")
    text = path.read_text(encoding="utf-8")
    plain = json.loads(text)
    path.write_text(
        {
            "torn": text[: len(text) // 2],
            "edited": json.dumps(plain | {"metrics": [{"name": "top1", "value": "many", "n": 1}]}),
            "a better number": text.replace("50.0", "90.0"),
            "old": json.dumps(plain | {"schema_version": "carryover-result-0"}),
            "not json": "\x00",
        }[damage],
        encoding="utf-8",
    )
    found, problems = read_records([tmp_path])
    assert [s.path.parent.name for s in found] == ["good"]
    assert [p.path for p in problems] == [path] and problems[0].reason


def test_a_record_without_a_digest_is_read_as_it_is(tmp_path: Path) -> None:
    path = write_record(record(), tmp_path)
    plain = json.loads(path.read_text(encoding="utf-8"))
    del plain["digest"]
    path.write_text(json.dumps(plain), encoding="utf-8")
    found, problems = read_records([tmp_path])
    assert [s.record for s in found] == [record()] and not problems


def test_a_run_below_a_directory_called_out_is_read(tmp_path: Path) -> None:
    write_record(record(), tmp_path / "out.here" / "run")
    assert len(read_records([tmp_path / "out.here"])[0]) == 1


def test_outputs_of_an_earlier_recipe_kept_aside_are_not_read(tmp_path: Path) -> None:
    write_record(record(), tmp_path / "stages" / "evaluate" / "out")
    write_record(record(), tmp_path / "stages" / "evaluate" / "out.12345678")
    found, _ = read_records([tmp_path])
    assert [s.path.parent.name for s in found] == ["out"]


def test_results_of_stages_that_the_pipeline_no_longer_names_are_read_only_where_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph([Stage("evaluate/kept", "tests.slurm.work:write")])
    for run in (tmp_path / "runs/a", tmp_path / "runs/b"):
        Ledger(run).write_pipeline(graph, {"evaluate/kept": "0"})
        for stage in ("evaluate/kept", "evaluate/gone", "gone"):
            Ledger(run).write(StageRecord(name=stage, hash="0", state="finished"))
            write_record(record(), run / "stages" / stage / "out")
        write_record(record(), run / "beside")

    def read(*runs: str) -> list[str]:
        found, problems = read_records([tmp_path / "runs" / run for run in runs])
        assert not problems
        return [str(stored.path.parent.relative_to(tmp_path / "runs")) for stored in found]

    assert read("a") == ["a/beside", "a/stages/evaluate/kept/out"]
    assert read("") == [*read("a"), *read("b")] and len(read("")) == 4
    assert read("a", "a/stages/gone") == [*read("a"), "a/stages/gone/out"]
    assert read("a/stages/evaluate/gone/out/result.json") == ["a/stages/evaluate/gone/out"]
    monkeypatch.chdir(tmp_path / "runs/a")
    assert len(read_records([Path()])[0]) == 2
    # Where it cannot be told which they are, that is a problem, and every result is read.
    (tmp_path / "runs/a/pipeline.json").write_text("{", encoding="utf-8")
    found, problems = read_records([tmp_path / "runs/a"])
    assert [problem.path for problem in problems] == [tmp_path / "runs/a/pipeline.json"] and len(found) == 4


def test_the_frame_has_one_row_a_metric(tmp_path: Path) -> None:
    metrics = (Metric(name="AP", value=40.0, n=9), Metric(name="APl", value=None, n=0))
    write_record(record(metrics=metrics), tmp_path)
    frame = to_frame(read_records([tmp_path])[0])
    assert list(frame["metric"]) == ["AP", "APl"]
    assert frame["value"].isna().tolist() == [False, True]
    assert set(frame["checkpoint_sha256"]) == {"a" * 64}


def test_a_frame_of_nothing_has_its_columns() -> None:
    assert {"metric", "value", "record", "recipe_hash"} <= set(to_frame([]).columns)


def test_a_record_of_version_2_says_its_settings_and_its_model_apart(tmp_path: Path) -> None:
    plain = json.loads(write_record(record(), tmp_path / "now").read_text(encoding="utf-8"))
    del plain["digest"]
    names = ["top1 k=20 T=0.07", "mask AP50", "mAP 4 positives", "top5", "mIoU"]
    metrics = [{"name": n, "value": 50.0, "unit": "%", "higher_is_better": True, "n": 9} for n in names]
    divergence = {"name": "KL divergence", "value": 1.0, "unit": "nats", "higher_is_better": False, "n": 9}
    facts = {"detector": "Mask R-CNN FPN", "images per batch": 16}
    old = {k: v for k, v in plain.items() if k != "model"}
    old |= {"schema_version": 2, "metrics": [*metrics, divergence], "facts": facts}
    (tmp_path / "then").mkdir()
    (tmp_path / "then" / "result.json").write_text(json.dumps(old), encoding="utf-8")
    found = load_record(tmp_path / "then" / "result.json")
    assert [(m.name, m.params, m.direction) for m in found.metrics] == [
        ("top1", {"k": 20, "T": 0.07}, "higher"),
        ("AP50", {"of": "mask"}, "higher"),
        ("mAP", {"positives": 4}, "higher"),
        ("top5", {}, "higher"),
        ("mIoU", {}, "higher"),
        ("KL divergence", {}, "none"),
    ]
    assert [m.label for m in found.metrics][:3] == ["top1 k=20 T=0.07", "mask AP50", "mAP positives=4"]
    assert found.model == "Mask R-CNN FPN" and found.facts == {"images per batch": 16}
