"""A whole detection run on procedural images: trained, tested, recorded, resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from carryover.configs import UserError, WorkError
from carryover.core.data.objects.splits import read_splits
from carryover.core.formats.metrics_log import read_metrics
from carryover.core.training.interrupt import Interrupted
from carryover.transfer.results.rescore import rescore
from carryover.transfer.tasks.detection import metrics
from carryover.transfer.tasks.detection.metrics import score
from carryover.transfer.tasks.detection.predictions_file import read_predictions
from carryover.transfer.tasks.evaluate import evaluate
from tests.interrupting import in_two_parts, stop_after
from tests.transfer.convert.backbones import write_backbone
from tests.transfer.processes import evaluate_in_two_processes
from tests.transfer.tasks.detection import runs


@pytest.fixture(scope="module")
def finished(shapes, checkpoint, tmp_path_factory):
    """One run that nothing disturbs."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    return evaluate(runs.recipe("demo_faster_fpn", shapes), checkpoint, out), out


def test_record_says_what_was_done(finished, shapes, checkpoint):
    record, _ = finished
    assert [m.label for m in record.metrics] == ["AP", "AP50", "AP75"]
    assert all(m.n == 5 and m.unit == "%" and 0 <= m.value <= 100 for m in record.metrics)
    assert (record.task, record.backend, record.split) == ("detection", "torchvision", "2007 test")
    assert record.facts["carried_tensors"] == 100
    # The first image of each split shows nothing.
    assert record.train_images == 4
    assert record.facts["empty_images_left_out"] == 1
    assert record.facts["iterations"] == 6


def test_files_beside_the_record(finished, shapes):
    record, out = finished
    present = {p.name for p in out.iterdir()}
    assert set(record.artifacts.values()) <= present
    assert "checkpoint.pt" not in present
    rows = list(read_metrics(out / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[0]["lr"] == pytest.approx(0.05 * (0.001 + 1) / 2, rel=1e-3)
    assert rows[2]["lr"] == pytest.approx(0.005)
    assert {"loss", "loss_classifier", "loss_box_reg", "loss_objectness"} <= set(rows[0])
    samples = sorted((out / "samples").glob("*.png"))
    assert len(samples) == 2
    with Image.open(samples[0]) as sample:
        assert min(sample.size) == 320


def test_scores_can_be_computed_again_from_the_predictions(finished, shapes):
    record, out = finished
    recipe = runs.recipe("demo_faster_fpn", shapes)
    splits = read_splits(recipe.data, needs_masks=False)
    predictions = read_predictions(out / "predictions.json.gz")
    again_scored = score(recipe.data, splits.test, predictions, masks=False).metrics
    assert [(m.label, m.value) for m in again_scored] == [(m.label, m.value) for m in record.metrics]
    (again,), problems = rescore([out])
    assert not again.differing and not problems and again.stored.record == record
    (out / "outcomes.npz").rename(out / "elsewhere.npz")
    (gone,) = rescore([out])[1]
    (out / "elsewhere.npz").rename(out / "outcomes.npz")
    assert "outcomes.npz: gone" in gone.reason


def test_a_finished_run_is_not_done_again(finished, shapes, checkpoint):
    record, out = finished
    before = (out / "predictions.json.gz").stat().st_mtime_ns
    assert evaluate(runs.recipe("demo_faster_fpn", shapes), checkpoint, out) == record
    assert (out / "predictions.json.gz").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"holds another result: seed: 0 -> 1;"):
        evaluate(runs.recipe("demo_faster_fpn", shapes, "seed=1"), checkpoint, out)


def test_held_out_images_are_looked_at_while_training_and_nothing_else_changes(
    shapes, checkpoint, tmp_path, monkeypatch
):
    """In two parts, too: the log is the same, and the last look is the record's number."""
    watched = ("watch.times=3", "watch.tensorboard=true", "precise_bn=0")
    recipe = runs.recipe("demo_faster_fpn", shapes, *watched)
    record = evaluate(recipe, checkpoint, tmp_path / "once")
    rows = list(read_metrics(tmp_path / "once" / "metrics.jsonl"))
    assert [row["step"] for row in rows if "validation_AP" in row] == [2, 4, 6]
    assert [rows[-1][f"validation_{m}"] for m in ("AP", "AP50")] == [m.value for m in record.metrics[:2]]
    assert list((tmp_path / "once" / "tensorboard").glob("events.*"))
    plain = evaluate(runs.recipe("demo_faster_fpn", shapes, "precise_bn=0"), checkpoint, tmp_path / "plain")
    assert plain.metrics == record.metrics and plain.recipe_hash == record.recipe_hash
    in_two_parts(lambda: evaluate(recipe, checkpoint, tmp_path / "twice"), 3, monkeypatch)
    runs.assert_same_files(tmp_path / "once", tmp_path / "twice")
    for name in ("detector.safetensors", "predictions.json.gz"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGTERM])
def test_stopped_and_resumed_equals_undisturbed(finished, shapes, checkpoint, tmp_path, monkeypatch, signum):
    stop_after(3, signum, monkeypatch)
    recipe = runs.recipe("demo_faster_fpn", shapes)
    with pytest.raises(Interrupted) as stopped:
        evaluate(recipe, checkpoint, tmp_path / "run")
    assert stopped.value.code == 128 + signum
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3
    monkeypatch.undo()
    evaluate(recipe, checkpoint, tmp_path / "run")
    runs.assert_same_files(finished[1], tmp_path / "run")


def test_killed_and_resumed_equals_undisturbed(finished, shapes, checkpoint, tmp_path):
    out = tmp_path / "run"
    overrides = runs.overrides(shapes, "checkpoints=3")
    program = (
        "import sys, pathlib, carryover.transfer.tasks.config; from carryover.configs import load;"
        "from carryover.transfer.tasks.evaluate import evaluate;"
        "evaluate(load('transfer', 'demo_faster_fpn', sys.argv[3:]), *map(pathlib.Path, sys.argv[1:3]))"
    )
    arguments = [sys.executable, "-c", program, str(checkpoint), str(out), *overrides]
    running = subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
    deadline = time.monotonic() + 240
    while not (out / "checkpoint.pt").exists() and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (out / "result.json").exists()
    evaluate(runs.recipe("demo_faster_fpn", shapes, "checkpoints=3"), checkpoint, out)
    runs.assert_same_files(finished[1], out)


def test_a_state_of_another_run_is_refused(shapes, checkpoint, tmp_path, monkeypatch):
    stop_after(1, signal.SIGUSR2, monkeypatch)
    with pytest.raises(Interrupted):
        evaluate(runs.recipe("demo_faster_fpn", shapes), checkpoint, tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"holds another work: solver\.base_lr: 0\.05 -> 0\.01;"):
        evaluate(runs.recipe("demo_faster_fpn", shapes, "solver.base_lr=0.01"), checkpoint, tmp_path)


def test_an_error_in_scoring_leaves_the_predictions_and_the_state(
    finished, shapes, checkpoint, tmp_path, monkeypatch
):
    def broken(*arguments):
        raise WorkError("this cannot be scored")

    monkeypatch.setattr(metrics, "score", broken)
    with pytest.raises(WorkError, match="this cannot be scored"):
        evaluate(runs.recipe("demo_faster_fpn", shapes), checkpoint, tmp_path)
    name = "predictions.json.gz"
    assert (tmp_path / name).read_bytes() == (finished[1] / name).read_bytes()
    monkeypatch.undo()
    record = evaluate(runs.recipe("demo_faster_fpn", shapes), checkpoint, tmp_path)
    assert record.metrics == finished[0].metrics and record.wall_seconds > 0
    runs.assert_same_files(finished[1], tmp_path)


def test_masks_in_coco_layout(shapes, checkpoint, tmp_path):
    recipe = runs.recipe("demo_mask_fpn", shapes, "model.mask_dim=16", "model.roi.score_threshold=0.0")
    record = evaluate(recipe, checkpoint, tmp_path)
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [m.label for m in record.metrics] == names + [f"mask {n}" for n in names]
    predictions = read_predictions(tmp_path / "predictions.json.gz")
    assert sum(len(p.scores) for p in predictions) > 0
    assert all(len(p.masks) == len(p.scores) for p in predictions)
    assert "loss_mask" in next(read_metrics(tmp_path / "metrics.jsonl"))


def test_a_test_object_without_a_segmentation_does_not_end_a_finished_run(shapes, checkpoint, tmp_path):
    for name in ("annotations", "VOC2007"):
        shutil.copytree(shapes / name, tmp_path / "data" / name)
    file = tmp_path / "data" / "annotations" / "test.json"
    content = json.loads(file.read_text("utf-8"))
    content["annotations"][0]["segmentation"] = []
    file.write_text(json.dumps(content), encoding="utf-8")
    keys = ("model.mask_dim=16", "model.roi.score_threshold=0.0")
    whole, changed = (
        evaluate(runs.recipe("demo_mask_fpn", root, *keys), checkpoint, tmp_path / out)
        for root, out in ((shapes, "whole"), (tmp_path / "data", "changed"))
    )
    runs.assert_same_files(tmp_path / "whole", tmp_path / "changed")
    assert [m.label for m in changed.metrics] == [m.label for m in whole.metrics]
    assert changed.metrics[:6] == whole.metrics[:6], "boxes have no part in it"


def test_every_file_is_as_readable_as_the_umask_says(finished):
    umask = os.umask(0o022)
    os.umask(umask)
    files = [p for p in finished[1].rglob("*") if p.is_file()]
    assert any(p.suffix == ".safetensors" for p in files)
    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in files}
    assert set(modes.values()) == {oct(0o666 & ~umask)}, modes


def test_c4(shapes, checkpoint, tmp_path):
    keys = ("solver.max_iter=2", "solver.steps=[1]", "solver.warmup_iters=0", "model.roi.batch_per_image=4")
    recipe = runs.recipe("demo_faster_c4", shapes, *keys, tiny=runs.TINY_C4)
    record = evaluate(recipe, checkpoint, tmp_path)
    assert record.model == "Faster R-CNN C4"
    assert record.facts["carried_tensors"] == 100


def test_bfloat16(shapes, checkpoint, tmp_path):
    keys = ("solver.max_iter=5", "log_every=1")
    logs = {}
    for precision in ("bf16", "fp32"):
        recipe = runs.recipe("demo_faster_fpn", shapes, f"solver.precision={precision}", *keys)
        evaluate(recipe, checkpoint, tmp_path / precision)
        logs[precision] = [row["loss"] for row in read_metrics(tmp_path / precision / "metrics.jsonl")]
    assert logs["bf16"] != logs["fp32"], "the network is autocast"
    # From the second step on the two sample other proposals.
    assert logs["bf16"][0] == pytest.approx(logs["fp32"][0], rel=0.01)
    assert logs["bf16"][-1] < logs["bf16"][0]


class TestTwoProcesses:
    def test_ranks_share_training_and_testing(self, shapes, checkpoint, tmp_path):
        overrides = runs.overrides(shapes, "model.norm=BN", "model.fpn_norm=BN")
        said = evaluate_in_two_processes("demo_faster_fpn", checkpoint, tmp_path / "run", overrides)
        assert said == ["done", "done"]
        predictions = read_predictions(tmp_path / "run" / "predictions.json.gz")
        splits = read_splits(runs.recipe("demo_faster_fpn", shapes).data, needs_masks=False)
        assert [p.image_id for p in predictions] == [i.id for i in splits.test.images]
        assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [2, 4, 6]

    def test_sync_bn_is_refused_where_torch_has_none(self, shapes, checkpoint, tmp_path):
        overrides = runs.overrides(shapes)
        said = evaluate_in_two_processes("demo_faster_fpn", checkpoint, tmp_path / "run", overrides)
        assert all("no SyncBN over several CPU processes" in text for text in said)


class TestBadInput:
    def test_missing_root_is_told_before_torch_is_imported(self, checkpoint, tmp_path):
        program = (
            "import sys, pathlib, carryover.transfer.tasks.config\n"
            "from carryover.configs import load, UserError\n"
            "from carryover.transfer.tasks.evaluate import evaluate;"
            "recipe = load('transfer', 'voc07_c4', ['data.root=/no/such/place'])\n"
            "try: evaluate(recipe, pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
            "except UserError as error: print(error); print('torch' in sys.modules)"
        )
        arguments = [sys.executable, "-c", program, str(checkpoint), str(tmp_path)]
        said = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
        assert "data.root: /no/such/place: no such directory" in said
        assert said.splitlines()[-1] == "False"

    def test_missing_checkpoint(self, shapes, tmp_path):
        with pytest.raises(UserError, match=r"nothing\.safetensors: no such checkpoint"):
            evaluate(runs.recipe("demo_faster_fpn", shapes), tmp_path / "nothing.safetensors", tmp_path)

    def test_other_pixel_statistics(self, shapes, tmp_path):
        odd = write_backbone(tmp_path / "odd.safetensors", pixel_mean=(0.5, 0.5, 0.5))
        with pytest.raises(UserError, match=r"pixel_mean \[127\.500, 127\.500, 127\.500\]"):
            evaluate(runs.recipe("demo_faster_fpn", shapes), odd, tmp_path)

    def test_cifar_stem(self, shapes, tmp_path):
        small = write_backbone(tmp_path / "small.safetensors", stem="cifar")
        with pytest.raises(UserError, match="stem 'imagenet'"):
            evaluate(runs.recipe("demo_faster_fpn", shapes), small, tmp_path)

    def test_classes_that_do_not_occur(self, shapes, checkpoint, tmp_path):
        recipe = runs.recipe(
            "demo_faster_fpn", shapes, "data.classes=[cow]", "data.defects.unknown_class=drop"
        )
        with pytest.raises(UserError, match="no object of cow"):
            evaluate(recipe, checkpoint, tmp_path)

    def test_a_loss_that_explodes_is_an_error_and_keeps_the_good_state(self, shapes, checkpoint, tmp_path):
        recipe = runs.recipe("demo_faster_fpn", shapes, "solver.base_lr=1e30", "solver.warmup_iters=0")
        with pytest.raises(WorkError, match=r"the loss is (nan|inf) at step"):
            evaluate(recipe, checkpoint, tmp_path)
        assert not (tmp_path / "checkpoint.pt").exists()
