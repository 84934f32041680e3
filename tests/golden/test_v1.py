"""What version 1 (carryover 0.1, revision 61b7ba6) wrote is listed, reported and gone on with."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from carryover.configs import UserError, load
from carryover.configs.identity import recipe_hash
from carryover.core.formats.canonical import backbone_digest, load_canonical, save_canonical
from carryover.core.formats.receipt import read_receipt
from carryover.core.formats.state import load_state
from carryover.slurm.control import retry
from carryover.slurm.executor import InlineExecutor, run_graph
from carryover.slurm.ledger import Ledger
from carryover.slurm.plan import Action, make_plan
from carryover.slurm.status import status
from carryover.slurm.submission import submissions
from carryover.transfer.pipeline.plan import plan
from carryover.transfer.report import write_report
from carryover.transfer.results.reading import read_records
from carryover.transfer.tasks.detection.predictions_file import read_predictions
from carryover.transfer.tasks.evaluate import evaluate
from carryover.transfer.tasks.frozen.features import FORMAT as FEATURES
from tests.golden import make_v1
from tests.golden.unpacked import unpack

RESULTS = (
    "detection",
    "detection_detectron2",
    "finetune",
    "knn",
    "linear",
    "linear_cached",
    "segmentation",
    "segmentation_mmseg",
    "svm",
    "tsne",
)
STATES = ("finetune", "linear", "detection", "segmentation")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records, receipts, states and the data they were made from; not to be changed."""
    return unpack("v1", "files", tmp_path_factory.mktemp("v1"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that version 1 finished in one process; not to be changed."""
    return unpack("v1", "run-inline", tmp_path_factory.mktemp("inline"))


def copied(run: Path, to: Path) -> Path:
    return shutil.copytree(run, to, copy_function=_linked_or_copied)


def _linked_or_copied(source: str, target: str) -> str:
    # Weights are replaced as wholes and never written into.
    if source.endswith((".pt", ".prev", ".pth", ".safetensors")):
        Path(target).hardlink_to(source)
        return target
    return shutil.copy2(source, target)


KEEP = make_v1.PIPELINE[3].replace('"samples=0"', '"samples=0", "data.defects.absent_class=keep"')
"""Its few images do not show every class, which version 1 did not look at."""


def pipeline(run: Path, *more: str) -> Any:
    return plan(load("pipelines", "demo", [*make_v1.PIPELINE, *more]), run)


def decisions(run: Path, *more: str) -> dict[str, Any]:
    return {d.stage.name: d for d in make_plan(pipeline(run, *more), Ledger(run), lambda record: "")}


DETECTION = "evaluate/simo_demo-seed0/demo_faster_fpn-seed0"


def test_a_finished_run_is_listed_and_only_what_would_be_another_number_is_done_again(finished: Path) -> None:
    now = status(finished)
    assert now.succeeded and len(now.stages) == 7
    # Scores of VOC's rule are rounded, and their ties were the processor's.
    plans = decisions(finished)
    again = {name for name, d in plans.items() if d.action is not Action.SKIP}
    assert again == {DETECTION, "report"}
    assert [str(d) for d in plans[DETECTION].differences] == ["version: 2 -> 3"]


@pytest.mark.parametrize("archive", ["run-inline", "run-local"])
def test_a_finished_run_is_reported(tmp_path: Path, archive: str) -> None:
    run = unpack("v1", archive, tmp_path)
    report = write_report([run], tmp_path / "report")
    assert report.records == (3 if archive == "run-inline" else 1) and not report.problems
    assert {s.executor for s in submissions(Ledger(run))} == {archive.removeprefix("run-")}


def test_only_what_changed_since_is_done_again_and_says_so(finished: Path) -> None:
    changed = make_v1.PIPELINE[3].replace("labels.fraction=0.5", "labels.fraction=0.4")
    plans = decisions(finished, changed)
    again = {
        name: [str(x) for x in d.differences] for name, d in plans.items() if d.action is not Action.SKIP
    }
    finetune = "evaluate/simo_demo-seed0/demo_finetune_10percent-seed"
    assert again.keys() == {f"{finetune}0", f"{finetune}1", DETECTION, "report"}
    assert again[f"{finetune}0"] == ["labels.fraction: 0.5 -> 0.4"]


def test_results_of_then_count_unless_their_numbers_would_be_others(
    files: Path, finished: Path, tmp_path: Path
) -> None:
    # Detectors are the same of one process, whose images come in the same order, and others of several.
    run = copied(finished, tmp_path / "run")
    _as_of_processes(Ledger(run).out(DETECTION) / "result.json", 8)
    again = {name: d for name, d in decisions(run).items() if d.action is not Action.SKIP}
    assert again.keys() == {DETECTION, "report"} and again[DETECTION].action is Action.REPLACE
    assert [str(d) for d in again[DETECTION].differences] == ["version: 1 -> 3"]

    # Pictures are read as they were, but for those that carry an orientation or more than 8 bits.
    checkpoint, data = files / "canonical/backbone.safetensors", tmp_path / "shapes"
    shutil.copytree(files / "shapes", data)
    out = copied(files / "results/knn", tmp_path / "knn")
    recipe = load("transfer", out / "recipe.yaml", [f"data.root={data / 'data/classification'}"])
    assert evaluate(recipe, checkpoint, out).task == "knn", "nothing is done again"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = min((data / "data/classification/val").rglob("*.*"))
    Image.new("RGB", (32, 32)).save(picture, exif=exif)
    for there in (out, copied(files / "states/linear", tmp_path / "linear")):
        recipe = load("transfer", there / "recipe.yaml", [f"data.root={data / 'data/classification'}"])
        with pytest.raises(UserError, match=rf"reading: 1 \(.*{picture.name} carries an orientation\) -> 2"):
            evaluate(recipe, checkpoint, there)


def _as_of_processes(record: Path, count: int) -> None:
    plain = json.loads(record.read_text(encoding="utf-8"))
    plain["facts"]["devices"] = count
    record.write_text(json.dumps(plain), encoding="utf-8")


def test_run_again_the_records_of_then_say_what_they_are(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "moved")
    assert Ledger(run).read("convert/simo_demo-seed0").stated is None
    assert run_graph(pipeline(run, KEEP), InlineExecutor(), run).succeeded
    for stage in Ledger(run).read_pipeline():
        record = Ledger(run).read(stage.name)
        assert record is not None and record.stated is not None and len(record.attempts) == 1
    assert {d.action for d in decisions(run).values()} == {Action.SKIP}
    assert retry(run).succeeded


def test_a_run_that_was_stopped_in_its_pretraining_is_gone_on_with(tmp_path: Path) -> None:
    run = unpack("v1", "run-stopped", tmp_path)
    stage = "pretrain/simo_demo-seed0"
    before = load_state(Ledger(run).out(stage) / "checkpoint.pt")
    assert before is not None and before["step"] > 0 and "identity" not in before
    states = {s.name: s.state for s in status(run).stages}
    assert states[stage] == "interrupted" and states["report"] == "waiting"

    # Its few images do not show every class, which version 1 did not look at.
    refused = retry(run).unsuccessful
    assert {name.partition("/")[0] for name in refused} == {"evaluate"}
    assert "absent_class" in refused["evaluate/simo_demo-seed0/demo_faster_fpn-seed0"].reason
    assert run_graph(pipeline(run, KEEP), InlineExecutor(), run).succeeded
    record = Ledger(run).read(stage)
    assert record is not None and len(record.attempts) == 2
    finished = unpack("v1", "run-inline", tmp_path, "stages/pretrain", "stages/evaluate")
    ours, theirs = (load_file(r / "stages" / stage / "out/backbone.safetensors") for r in (run, finished))
    assert all(torch.allclose(ours[n], theirs[n], atol=1e-5) for n in theirs), "as if it had never stopped"
    assert len(read_records([run])[0]) == 3 and (run / "report/index.html").is_file()


def test_its_pretraining_is_not_gone_on_with_by_another_recipe(tmp_path: Path) -> None:
    run = unpack("v1", "run-stopped", tmp_path)
    other = make_v1.PIPELINE[2].replace("method.negatives=4", "method.negatives=5")
    decision = decisions(run, other)["pretrain/simo_demo-seed0"]
    assert decision.action is Action.REPLACE
    assert [str(d) for d in decision.differences] == ["method.negatives: 4 -> 5"]


def test_records_of_every_task_are_read_as_todays(files: Path) -> None:
    found, problems = read_records([files / "results"])
    assert not problems and tuple(s.path.parent.name for s in found) == RESULTS
    for stored in found:
        record = stored.record
        assert record.task_version == 1 and record.data_digest is None and record.protocol is not None
        assert record.protocol["task"] in record.task
        recipe = load("transfer", _file_of(stored.path))
        assert record.recipe_hash == recipe_hash(recipe), "old and new results stand in one column"


def test_predictions_and_receipts_of_then_are_read(files: Path) -> None:
    assert len(read_predictions(files / "results/detection/predictions.json.gz")) > 0
    for name in ("torchvision.pth", "detectron2.pkl", "mmseg.pth", "timm.safetensors"):
        receipt = read_receipt(files / "receipts" / name.partition(".")[0] / name)
        assert len(receipt.tensors) == receipt.expected and receipt.metadata.method == "simo"


def test_a_canonical_checkpoint_of_then_is_read(files: Path) -> None:
    state, metadata = load_canonical(files / "canonical/backbone.safetensors")
    assert metadata.method == "simo" and metadata.backbone.arch == "resnet18" and len(state) > 100
    assert len(backbone_digest(state, metadata)) == 64


def test_features_of_then_are_computed_again(tmp_path: Path) -> None:
    run = unpack("v1", "run-local", tmp_path)
    stored = list(run.glob("stages/import/*/out/features/*/meta.json"))
    assert stored and all("schema_version" not in json.loads(p.read_text()) for p in stored)
    assert FEATURES.version == 3, "the version is part of an entry's name"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STATES, pytest.param("segmentation_mmseg", marks=pytest.mark.mmseg)])
def test_a_training_of_then_goes_on_where_it_was_stopped(files: Path, tmp_path: Path, name: str) -> None:
    out = copied(files / "states" / name, tmp_path / "out")
    done = files / "results" / name
    record = evaluate(_recipe(out, files), files / "canonical/backbone.safetensors", out)
    (then,) = read_records([done])[0]
    for ours, theirs in zip(record.metrics, then.record.metrics, strict=True):
        assert ours.name == theirs.name
        assert np.isclose(ours.value or 0.0, theirs.value or 0.0, atol=1e-3), ours.name
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    whole = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    # Where it was stopped there may be a line that the undisturbed training has not.
    steps = [row["step"] for row in whole]
    assert steps == [row["step"] for row in logged if row["step"] in steps]
    assert logged[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-3)


@pytest.mark.parametrize("name", STATES)
def test_a_training_of_then_is_not_gone_on_with_by_other_work(files: Path, tmp_path: Path, name: str) -> None:
    out = copied(files / "states" / name, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.suffix != ".pt"}
    other = _recipe(out, files).model_copy(update={"seed": 5})
    with pytest.raises(UserError, match=r"holds another work: seed: 0 -> 5"):
        evaluate(other, files / "canonical/backbone.safetensors", out)
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.suffix != ".pt"} == before


def _file_of(record: Path) -> Path:
    return record.with_name("recipe.yaml")


def _recipe(out: Path, files: Path) -> Any:
    """Load the recipe beside a state, for the data where they are unpacked now."""
    text = (out / "recipe.yaml").read_text(encoding="utf-8")
    root = next(line for line in text.splitlines() if line.strip().startswith("root:")).split(": ", 1)[1]
    here = files / "folders" if root.endswith("folders") else files / Path(*Path(root).parts[-3:])
    # Its few images do not show every class, which version 1 did not look at.
    keep = ["data.defects.absent_class=keep"] if "\n  defects:" in text else []
    return load("transfer", out / "recipe.yaml", [f"data.root={here}", *keep])


def test_what_version_1_kept_aside_is_brought_back(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    plain = json.loads((run / "pipeline.json").read_text(encoding="utf-8"))
    stage = "evaluate/simo_demo-seed0/demo_finetune_10percent-seed0"
    directory = Ledger(run).directory(stage)
    hash8 = json.loads((directory / "stage.json").read_text(encoding="utf-8"))["hash"][:8]
    for name in ("out", "logs"):
        (directory / name).rename(directory / f"{name}.{hash8}")
    kept = directory / f"stage.{hash8}.json"
    (directory / "stage.json").rename(kept)
    # As if another recipe had been run in between, by version 1.
    other = json.loads(kept.read_text(encoding="utf-8")) | {"hash": "0" * 64, "state": "failed"}
    (directory / "stage.json").write_text(json.dumps(other), encoding="utf-8")
    assert {s["name"] for s in plain["stages"]} > {stage}
    decision = decisions(run)[stage]
    assert decision.action is Action.RESTORE and "brought back" in decision.reason


@pytest.mark.parametrize("name", STATES)
def test_a_training_of_then_refuses_another_checkpoint_and_stays_its_owners(
    files: Path, tmp_path: Path, name: str
) -> None:
    out = copied(files / "states" / name, tmp_path / "out")
    state, metadata = load_canonical(files / "canonical/backbone.safetensors")
    changed = {key: value + 1 if key == "conv1.weight" else value for key, value in state.items()}
    save_canonical(tmp_path / "other.safetensors", changed, metadata)
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.suffix != ".pt"}
    with pytest.raises(UserError, match="holds the training state of another recipe, seed, checkpoint"):
        evaluate(_recipe(out, files), tmp_path / "other.safetensors", out)
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.suffix != ".pt"} == before
