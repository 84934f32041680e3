"""A whole segmentation run on procedural images: trained, tested, recorded, resumed."""

import json
import multiprocessing
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score, recall_score

from carryover.configs import UserError, WorkError
from carryover.core.formats.metrics_log import read_metrics
from carryover.core.training.interrupt import Interrupted
from carryover.transfer.results.rescore import rescore
from carryover.transfer.tasks.evaluate import evaluate
from tests.interrupting import in_two_parts, stop_after
from tests.transfer.convert.backbones import write_backbone
from tests.transfer.processes import evaluate_in_two_processes
from tests.transfer.tasks.segmentation.scenes import CLASSES, overrides, recipe


@pytest.fixture(scope="module")
def finished(root, checkpoint, tmp_path_factory):
    """One run that nothing disturbs."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    return evaluate(recipe(root), checkpoint, out), out


def test_record_says_what_was_done(finished):
    record, _ = finished
    assert [m.label for m in record.metrics] == ["mIoU", "aAcc", "mAcc"]
    assert all(m.n == 5 and m.unit == "%" and 0 <= m.value <= 100 for m in record.metrics)
    assert (record.task, record.backend, record.split) == ("segmentation", "torchvision", "val/images")
    assert record.backend_version != "unknown"
    assert record.model == "FCN-d8"
    assert record.facts["carried_tensors"] == 120
    assert (record.facts["classes"], record.facts["iterations"], record.train_images) == (5, 6, 5)


def test_files_beside_the_record(finished):
    record, out = finished
    present = {p.name for p in out.iterdir()}
    assert set(record.artifacts.values()) <= present
    assert "checkpoint.pt" not in present
    rows = list(read_metrics(out / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[2]["lr"] == pytest.approx(1e-4)
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_seg"] + row["loss_aux"], rel=1e-5)
    samples = sorted((out / "samples").glob("*.png"))
    assert len(samples) == 2
    with Image.open(samples[0]) as sample:
        assert min(sample.size) == 320


def test_scores_can_be_computed_again_by_scikit_learn_and_from_the_outcomes(finished):
    record, out = finished
    stored = json.loads((out / "confusion.json").read_text())
    matrix = np.array(stored["pixels by label and prediction"])
    assert stored["classes"] == CLASSES
    # Five test images of 128 px, nothing of them ignored.
    assert matrix.sum() == 5 * 128 * 128
    truth, found = np.indices(matrix.shape).reshape(2, -1)
    weights = {"sample_weight": matrix.ravel(), "average": "macro"}
    there = [k for k in range(5) if matrix[k].any()]
    either = [k for k in range(5) if matrix[k].any() or matrix[:, k].any()]
    iou = jaccard_score(truth, found, labels=either, **weights)
    recall = recall_score(truth, found, labels=there, **weights)
    expected = [100 * iou, 100 * np.trace(matrix) / matrix.sum(), 100 * recall]
    assert [m.value for m in record.metrics] == pytest.approx(expected, abs=1e-9)
    (again,), problems = rescore([out])
    assert [m.value for m in again.counted] == [m.value for m in record.metrics] and not problems


def test_a_finished_run_is_not_done_again(finished, root, checkpoint):
    record, out = finished
    before = (out / "confusion.json").stat().st_mtime_ns
    assert evaluate(recipe(root), checkpoint, out) == record
    assert (out / "confusion.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"holds another result: seed: 0 -> 1;"):
        evaluate(recipe(root, "seed=1"), checkpoint, out)


def test_held_out_images_are_looked_at_while_training_and_nothing_else_changes(
    finished, root, checkpoint, tmp_path, monkeypatch
):
    """In two parts, too: the log is the same, and the last look is the record's number."""
    watched = recipe(root, "watch.times=2")
    record = evaluate(watched, checkpoint, tmp_path / "once")
    rows = list(read_metrics(tmp_path / "once" / "metrics.jsonl"))
    assert [row["step"] for row in rows if "validation_mIoU" in row] == [3, 6]
    assert rows[-1]["validation_mIoU"] == record.metrics[0].value == finished[0].metrics[0].value
    in_two_parts(lambda: evaluate(watched, checkpoint, tmp_path / "twice"), 4, monkeypatch)
    for name in ("segmenter.safetensors", "confusion.json", "metrics.jsonl"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes(), name
    for name in ("segmenter.safetensors", "confusion.json"):
        assert (tmp_path / "once" / name).read_bytes() == (finished[1] / name).read_bytes(), name


def test_stopped_and_resumed_equals_undisturbed(finished, root, checkpoint, tmp_path, monkeypatch):
    stop_after(3, signal.SIGUSR2, monkeypatch)
    with pytest.raises(Interrupted) as stopped:
        evaluate(recipe(root), checkpoint, tmp_path / "run")
    assert stopped.value.code == 128 + signal.SIGUSR2
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"holds another work: solver\.base_lr: 0\.05 -> 0\.01;"):
        evaluate(recipe(root, "solver.base_lr=0.01"), checkpoint, tmp_path / "run")
    evaluate(recipe(root), checkpoint, tmp_path / "run")
    for name in ("segmenter.safetensors", "confusion.json", "metrics.jsonl"):
        assert (finished[1] / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


def test_loading_in_processes_changes_nothing_and_a_signal_to_all_of_them_is_survived(
    finished, root, checkpoint, tmp_path, monkeypatch
):
    others = set(multiprocessing.active_children())
    stop_after(2, signal.SIGTERM, monkeypatch, everybody=True)
    with pytest.raises(Interrupted) as stopped:
        evaluate(recipe(root, "workers=1"), checkpoint, tmp_path / "run")
    assert stopped.tb is not None and set(multiprocessing.active_children()) <= others
    monkeypatch.undo()
    evaluate(recipe(root, "workers=1"), checkpoint, tmp_path / "run")
    name = "segmenter.safetensors"
    assert (finished[1] / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_sliding_window_and_a_resnet_50_in_bfloat16(root, tmp_path):
    keys = (
        *("input.test_mode=slide", "input.test_stride=[32, 32]", "solver.precision=bf16"),
        *("solver.max_iter=1", "model.auxiliary=null", "model.norm=BN", "model.align_corners=true"),
    )
    checkpoint = write_backbone(tmp_path / "r50.safetensors", "resnet50")
    shrunk = [o for o in overrides(root) if not o.startswith("model.auxiliary")]
    from carryover.configs import load

    record = evaluate(load("transfer", "fcn_folders", [*shrunk, *keys]), checkpoint, tmp_path / "run")
    assert record.backbone == "resnet50"
    assert "loss_aux" not in next(read_metrics(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.slow
def test_two_processes_do_one_processs_step_and_share_testing(root, checkpoint, tmp_path):
    # Without dropout, which each rank draws for itself; SyncBN sees the images of both.
    keys = ("model.dropout=0", "solver.max_iter=1", "solver.base_lr=5")
    two = tmp_path / "two"
    said = evaluate_in_two_processes("fcn_folders", checkpoint, two, overrides(root, *keys))
    assert said == ["done", "done"]
    stored = json.loads((tmp_path / "two" / "confusion.json").read_text())
    assert np.array(stored["pixels by label and prediction"]).sum() == 5 * 128 * 128
    evaluate(recipe(root, *keys), checkpoint, tmp_path / "one")
    one, two = (load_file(tmp_path / out / "segmenter.safetensors") for out in ("one", "two"))
    for name, before in load_file(checkpoint).items():
        if before.is_floating_point():
            moved, together = one[f"backbone.{name}"] - before, two[f"backbone.{name}"] - before
            assert moved.norm() > 0, name
            assert (together - moved).norm() < 0.01 * moved.norm(), name


class TestBadInput:
    def test_missing_root_is_told_before_torch_is_imported(self, checkpoint, tmp_path):
        program = (
            "import sys, pathlib, carryover.transfer.tasks.config\n"
            "from carryover.configs import load, UserError\n"
            "from carryover.transfer.tasks.evaluate import evaluate;"
            "recipe = load('transfer', 'fcn_r50_voc2012aug', ['data.root=/no/such/place'])\n"
            "try: evaluate(recipe, pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
            "except UserError as error: print(error); print('torch' in sys.modules)"
        )
        arguments = [sys.executable, "-c", program, str(checkpoint), str(tmp_path)]
        said = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
        assert "data.root: /no/such/place: no such directory" in said
        assert said.splitlines()[-1] == "False"

    def test_missing_checkpoint(self, root, tmp_path):
        with pytest.raises(UserError, match=r"nothing\.safetensors: no such checkpoint"):
            evaluate(recipe(root), tmp_path / "nothing.safetensors", tmp_path)

    def test_other_pixel_statistics(self, root, checkpoint, tmp_path):
        with pytest.raises(UserError, match=r"input\.pixel_mean: \[100\.0, 116\.28, 103\.53\]"):
            evaluate(recipe(root, "input.pixel_mean=[100, 116.28, 103.53]"), checkpoint, tmp_path)

    def test_cifar_stem(self, root, tmp_path):
        small = write_backbone(tmp_path / "small.safetensors", stem="cifar")
        with pytest.raises(UserError, match="stem 'imagenet'"):
            evaluate(recipe(root), small, tmp_path)

    def test_a_loss_that_explodes_is_an_error(self, root, checkpoint, tmp_path):
        with pytest.raises(WorkError, match=r"the loss is (nan|inf) at step"):
            evaluate(recipe(root, "solver.base_lr=1e30", "checkpoints=1"), checkpoint, tmp_path)
        assert not (tmp_path / "checkpoint.pt").exists()
