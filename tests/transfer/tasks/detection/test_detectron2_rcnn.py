"""A whole Detectron2 run on procedural images: carried, trained, tested, recorded, resumed, shared."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from carryover.configs import UserError, WorkError
from carryover.core.data.objects.splits import read_splits
from carryover.core.formats.metrics_log import read_metrics
from carryover.core.training.interrupt import Interrupted
from carryover.transfer.convert.detectron2 import TARGET
from carryover.transfer.tasks.detection.metrics import score
from carryover.transfer.tasks.detection.predictions_file import read_predictions
from carryover.transfer.tasks.evaluate import evaluate
from tests.interrupting import stop_after
from tests.transfer.convert.backbones import write_backbone
from tests.transfer.processes import evaluate_in_two_processes
from tests.transfer.tasks.detection import runs

WAIT = 600.0
# Every synchronized layer makes the ranks wait for each other twice a step: those of the pyramid will do.
TWO_RANKS = [
    "model.norm=BN",
    "model.fpn_norm=naiveSyncBN",
    "solver.max_iter=4",
    "solver.steps=[3]",
    "log_every=1",
    "checkpoints=2",
]


@pytest.fixture(scope="module")
def finished(shapes, checkpoint, tmp_path_factory):
    """One run that nothing disturbs."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    return evaluate(_recipe("demo_faster_fpn", shapes), checkpoint, out), out


@pytest.mark.detectron2
class TestOneRun:
    def test_record_says_what_was_done(self, finished):
        import detectron2

        record, _ = finished
        assert [m.label for m in record.metrics] == ["AP", "AP50", "AP75"]
        assert all(m.n == 5 and m.unit == "%" and 0 <= m.value <= 100 for m in record.metrics)
        assert (record.task, record.split) == ("detection", "2007 test")
        assert (record.backend, record.backend_version) == ("detectron2", detectron2.__version__)
        assert record.train_images == 4
        facts = record.facts
        assert facts["carried_tensors"] == 100
        assert facts["receipt"] == "backbone.pkl.receipt.json"
        assert facts["conversion_difference"] <= 1e-4
        assert facts["norm"] == "SyncBN (BN in one process)"
        assert facts["detectron2"] in {"built", "unbuilt"}
        assert facts["iterations"] == 6

    def test_files_beside_the_record(self, finished):
        from detectron2.config import get_cfg
        from safetensors import safe_open

        record, out = finished
        present = {p.name for p in out.iterdir()}
        assert set(record.artifacts.values()) <= present
        assert not present & {"checkpoint.pt", "backbone.pkl"}
        rows = list(read_metrics(out / "metrics.jsonl"))
        assert [row["step"] for row in rows] == [2, 4, 6]
        assert rows[0]["lr"] == pytest.approx(0.05 * (0.001 + 1) / 2, rel=1e-3)
        assert rows[2]["lr"] == pytest.approx(0.005)
        parts = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
        assert all(row["loss"] == pytest.approx(sum(row[p] for p in parts), rel=1e-5) for row in rows)
        # Anyone with Detectron2 can build the model of the weights again.
        cfg = get_cfg()
        cfg.merge_from_file(str(out / "detectron2.yaml"))
        assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.FPN.OUT_CHANNELS) == (4, 16)
        with safe_open(str(out / "detector.safetensors"), framework="pt") as weights:
            assert "backbone.bottom_up.stem.conv1.weight" in weights.keys()  # noqa: SIM118 (not a dict)

    def test_scores_can_be_computed_again_from_the_predictions(self, finished, shapes):
        record, out = finished
        recipe = _recipe("demo_faster_fpn", shapes)
        splits = read_splits(recipe.data, needs_masks=False)
        predictions = read_predictions(out / "predictions.json.gz")
        assert [p.image_id for p in predictions] == [i.id for i in splits.test.images]
        again = score(recipe.data, splits.test, predictions, masks=False).metrics
        assert [(m.label, m.value) for m in again] == [(m.label, m.value) for m in record.metrics]

    def test_a_finished_run_is_not_done_again(self, finished, shapes, checkpoint):
        record, out = finished
        before = (out / "predictions.json.gz").stat().st_mtime_ns
        assert evaluate(_recipe("demo_faster_fpn", shapes), checkpoint, out) == record
        assert (out / "predictions.json.gz").stat().st_mtime_ns == before
        with pytest.raises(UserError, match=r"holds another result: backend: detectron2 -> torchvision;"):
            evaluate(_recipe("demo_faster_fpn", shapes, "backend=torchvision"), checkpoint, out)

    def test_stopped_and_resumed_equals_undisturbed(
        self, finished, shapes, checkpoint, tmp_path, monkeypatch
    ):
        stop_after(3, signal.SIGUSR2, monkeypatch)
        recipe = _recipe("demo_faster_fpn", shapes)
        with pytest.raises(Interrupted) as stopped:
            evaluate(recipe, checkpoint, tmp_path / "run")
        assert stopped.value.code == 128 + signal.SIGUSR2
        assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3
        monkeypatch.undo()
        converted = (tmp_path / "run" / "backbone.pkl").stat().st_mtime_ns
        seen = []
        monkeypatch.setattr(Path, "unlink", _noting(Path.unlink, seen))
        # Loaded by other processes this time, which changes nothing.
        evaluate(_recipe("demo_faster_fpn", shapes, "workers=1"), checkpoint, tmp_path / "run")
        assert ("backbone.pkl", converted) in seen
        runs.assert_same_files(finished[1], tmp_path / "run")

    def test_mask_rcnn_c4_in_coco_layout(self, shapes, checkpoint, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text(
            "base: demo_mask_fpn\n"
            "model: {name: c4, masks: true, mask_dim: 16, anchor_sizes: [16, 32, 64],"
            " roi: {score_threshold: 0.0}}\n"
        )
        recipe = _recipe(path, shapes, tiny=runs.TINY_C4)
        record = evaluate(recipe, checkpoint, tmp_path / "run")
        names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
        assert [m.label for m in record.metrics] == names + [f"mask {n}" for n in names]
        assert record.model == "Mask R-CNN C4"
        assert record.facts["mask_format"] == "polygon"
        predictions = read_predictions(tmp_path / "run" / "predictions.json.gz")
        assert sum(len(p.scores) for p in predictions) > 0
        assert all(len(p.masks) == len(p.scores) for p in predictions)
        assert "loss_mask" in next(read_metrics(tmp_path / "run" / "metrics.jsonl"))

    def test_a_backbone_that_did_not_arrive_stops_before_the_first_iteration(
        self, shapes, checkpoint, tmp_path, monkeypatch
    ):
        from detectron2.checkpoint import DetectionCheckpointer

        from carryover.transfer.tasks.detection.detectron2 import backend as detectron2_backend

        class Forgetful(DetectionCheckpointer):
            def load(self, path):
                super().load(path)
                self.model.backbone.bottom_up.res4[0].conv1.norm.bias.data.zero_()

        monkeypatch.setattr(detectron2_backend, "DetectionCheckpointer", Forgetful)
        with pytest.raises(WorkError, match=r"not the checkpoint's values: 'layer3\.0\.bn1\.bias'"):
            evaluate(_recipe("demo_faster_fpn", shapes), checkpoint, tmp_path)
        assert not (tmp_path / "metrics.jsonl").exists()
        assert not (tmp_path / "result.json").exists()

    def test_a_loss_that_explodes_is_an_error(self, shapes, checkpoint, tmp_path):
        recipe = _recipe("demo_faster_fpn", shapes, "solver.base_lr=1e30", "solver.warmup_iters=0")
        with pytest.raises(WorkError, match="the learning rate is too high"):
            evaluate(recipe, checkpoint, tmp_path)
        assert not (tmp_path / "checkpoint.pt").exists()

    def test_a_backbone_that_detectron2_has_no_place_for(self, shapes, tmp_path):
        wide = write_backbone(tmp_path / "wide.safetensors", width=2)
        with pytest.raises(UserError, match="Detectron2 builds ResNet-18 and 34 with 64 only"):
            evaluate(_recipe("demo_faster_fpn", shapes), wide, tmp_path / "run")


@pytest.mark.detectron2
@pytest.mark.slow
@pytest.mark.timeout(4 * WAIT)
class TestTwoProcesses:
    def test_launched_stopped_and_resumed_equals_ranks_from_the_environment(
        self, shapes, checkpoint, tmp_path
    ):
        from carryover.transfer.tasks.detection.detectron2.launch import evaluate_in_processes

        ranks, launched = tmp_path / "ranks", tmp_path / "launched"
        overrides = runs.overrides(shapes, "backend=detectron2", *TWO_RANKS)
        said = evaluate_in_two_processes("demo_faster_fpn", checkpoint, ranks, overrides, WAIT)
        # Detectron2 prints before it.
        assert [text.rpartition("\n")[2] for text in said] == ["done", "done"]
        recipe = _recipe("demo_faster_fpn", shapes, *TWO_RANKS)
        stopper = threading.Thread(target=_signal_when_there_is, args=(launched / "metrics.jsonl",))
        stopper.start()
        with pytest.raises(Interrupted):
            evaluate_in_processes(2, recipe, checkpoint, launched)
        stopper.join()
        stopped_at = torch.load(launched / "checkpoint.pt", weights_only=True)["step"]
        assert 1 <= stopped_at <= 4
        record = evaluate_in_processes(2, recipe, checkpoint, launched)
        assert record.facts["processes"] == 2
        runs.assert_same_files(ranks, launched)
        images = read_splits(recipe.data, needs_masks=False).test.images
        predictions = read_predictions(launched / "predictions.json.gz")
        assert [p.image_id for p in predictions] == [i.id for i in images]

    def test_what_they_refuse_is_said_as_one_process_says_it(self, shapes, checkpoint, tmp_path):
        from carryover.transfer.tasks.detection.detectron2.launch import evaluate_in_processes

        with pytest.raises(UserError, match="choose naiveSyncBN or BN"):
            evaluate_in_processes(2, _recipe("demo_faster_fpn", shapes), checkpoint, tmp_path)


class TestWithoutDetectron2:
    def test_the_doctor_is_named(self, shapes, checkpoint, tmp_path, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"not importable here\. `carryover doctor` says how to get it"):
            evaluate(_recipe("demo_faster_fpn", shapes), checkpoint, tmp_path)

    def test_so_is_what_it_lacks(self, shapes, checkpoint, tmp_path, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        broken = replace(TARGET, version=lambda: (None, "No module named 'fvcore'"))
        monkeypatch.setattr("carryover.transfer.convert.detectron2.TARGET", broken)
        with pytest.raises(UserError, match=r"fails: No module named 'fvcore'\. `carryover doctor`"):
            evaluate(_recipe("demo_faster_fpn", shapes), checkpoint, tmp_path)

    def test_the_recipe_alone_imports_neither_torch_nor_detectron2(self):
        program = (
            "import sys, carryover.transfer.tasks.config\n"
            "import carryover.transfer.tasks.detection.task\n"
            "from carryover.configs import load;"
            "load('transfer', 'coco_fpn_1x', ['backend=detectron2']);"
            "print('torch' in sys.modules, 'detectron2' in sys.modules)"
        )
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert said.stdout.split() == ["False", "False"]


def _recipe(name, shapes, *more, **how):
    return runs.recipe(name, shapes, "backend=detectron2", *more, **how)


def _noting(unlink, seen: list):
    """Path.unlink that notes what is removed and when it was written."""

    def noted(self, missing_ok=False):
        if self.exists():
            seen.append((self.name, self.stat().st_mtime_ns))
        unlink(self, missing_ok=missing_ok)

    return noted


def _signal_when_there_is(path: Path) -> None:
    """Tell this process to stop once a file has lines in it."""
    deadline = time.monotonic() + WAIT
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGUSR2)
