"""A whole segmentation run in mmsegmentation: proven, trained, tested, recorded, resumed."""

import importlib
import multiprocessing
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from carryover.configs import UserError, WorkError, load
from carryover.core.formats.metrics_log import read_metrics
from carryover.core.training.interrupt import Interrupted
from carryover.transfer.convert.mmcv_stub import install
from carryover.transfer.tasks.evaluate import evaluate
from carryover.transfer.tasks.segmentation.config import SolverConfig
from tests.interrupting import stop_after
from tests.transfer.tasks.segmentation.scenes import CLASSES, overrides, recipe

pytestmark = pytest.mark.mmseg


@pytest.fixture(scope="module")
def finished(root, checkpoint, tmp_path_factory):
    """One run that nothing disturbs."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    return evaluate(recipe(root, "backend=mmseg"), checkpoint, out), out


def test_record_names_the_library_and_what_was_proven(finished):
    record, out = finished
    assert [m.label for m in record.metrics] == ["mIoU", "aAcc", "mAcc"]
    assert all(m.n == 5 and 0 <= m.value <= 100 for m in record.metrics)
    assert (record.task, record.backend, record.backend_version) == (
        "segmentation",
        "mmsegmentation",
        importlib.import_module("mmseg").__version__,
    )
    assert record.model == "FCN-d8"
    assert record.facts["carried_tensors"] == 120
    present = {p.name for p in out.iterdir()}
    assert set(record.artifacts.values()) <= present
    assert "checkpoint.pth" not in present


def test_the_log_is_that_of_the_other_backend(finished):
    rows = list(read_metrics(finished[1] / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[2]["lr"] == pytest.approx(1e-4)
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_seg"] + row["loss_aux"], rel=1e-5)


def test_stopped_and_resumed_continues_where_it_was(finished, root, checkpoint, tmp_path, monkeypatch):

    config = recipe(root, "backend=mmseg")
    stop_after(3, signal.SIGUSR2, monkeypatch)
    with pytest.raises(Interrupted) as stopped:
        evaluate(config, checkpoint, tmp_path)
    assert stopped.value.code == 128 + signal.SIGUSR2
    monkeypatch.undo()
    # Nothing but tensors and plain containers: no file is ever executed.
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    with pytest.raises(UserError, match=r"holds another work: solver\.base_lr: 0\.05 -> 0\.01;"):
        evaluate(recipe(root, "backend=mmseg", "solver.base_lr=0.01"), checkpoint, tmp_path)

    # The first thing that the resumed run does is to compute with the weights that were saved.
    seen = []
    original = SolverConfig.rate

    def watched(solver, iteration):
        rate = original(solver, iteration)
        seen.append((iteration, rate))
        return rate

    monkeypatch.setattr(SolverConfig, "rate", watched)
    evaluate(config, checkpoint, tmp_path)
    assert seen[0] == (3, pytest.approx(1e-4 + (0.05 - 1e-4) * 0.4**0.9))
    name = "backbone.layer1.0.conv1.weight"
    assert not torch.equal(load_file(tmp_path / "segmenter.safetensors")[name], state["model"][name])
    # Draws, dropout and momentum are the undisturbed run's too, so the end is.
    for name in ("confusion.json", "metrics.jsonl", "segmenter.safetensors"):
        assert (finished[1] / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_torn_state_gives_way_to_the_one_before(root, checkpoint, tmp_path, monkeypatch, caplog):
    config = recipe(root, "backend=mmseg", "checkpoints=6", "workers=1")
    others = set(multiprocessing.active_children())
    stop_after(3, signal.SIGTERM, monkeypatch)
    with pytest.raises(Interrupted) as stopped:
        evaluate(config, checkpoint, tmp_path)
    # Loaders ignore SIGTERM: left behind, they would keep the process from ending.
    assert stopped.tb is not None and set(multiprocessing.active_children()) <= others
    monkeypatch.undo()
    newest = tmp_path / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert evaluate(config, checkpoint, tmp_path).facts["iterations"] == 6
    assert "checkpoint.pt is damaged" in caplog.text
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4, 6]


def test_upernet_takes_a_step_in_bfloat16(root, checkpoint, tmp_path):
    keys = [o for o in overrides(root) if not o.startswith(("data.root", "data.classes", "solver.max_iter"))]
    path = tmp_path / "upernet.yaml"
    path.write_text("base: _segmentation\nmodel: {name: upernet}\n" + _data_of(root))
    more = ("backend=mmseg", "solver.max_iter=1", "solver.precision=bf16")
    record = evaluate(load("transfer", path, [*keys, *more]), checkpoint, tmp_path / "run")
    assert record.model == "UPerNet"
    assert record.facts["carried_tensors"] == 120


class TestProof:
    """A model in which any backbone tensor kept its random value stops before iteration 0."""

    @pytest.fixture
    def parts(self, root, checkpoint, tmp_path):
        from carryover.core.formats.backbone import BackboneConfig
        from carryover.transfer.convert import convert
        from carryover.transfer.tasks.segmentation.mmseg.model import model_settings

        install()
        receipt = convert(checkpoint, "mmseg", tmp_path / "b.pth")
        about = BackboneConfig(arch="resnet18")
        return model_settings(recipe(root), about, 5, tmp_path / "b.pth", "BN"), receipt

    def test_weights_that_were_not_loaded(self, parts):
        from carryover.transfer.tasks.segmentation.mmseg.model import build_model

        settings, receipt = parts
        del settings["backbone"]["init_cfg"]
        with pytest.raises(WorkError, match="not the checkpoint's values"):
            build_model(settings, receipt, 0)

    def test_one_tensor_that_differs(self, parts):
        from carryover.transfer.tasks.segmentation.mmseg.model import build_model, prove

        model, _ = build_model(*parts, 0)
        with torch.no_grad():
            model.backbone.layer4[1].conv2.weight[0, 0, 0, 0] += 1e-6
        with pytest.raises(WorkError, match=r"layer4\.1\.conv2\.weight"):
            prove(model, parts[1])

    def test_a_deep_stem(self, parts):
        from carryover.transfer.tasks.segmentation.mmseg.model import build_model

        settings, receipt = parts
        settings["backbone"] = {
            k: v for k, v in settings["backbone"].items() if k not in ("deep_stem", "avg_down", "init_cfg")
        } | {"type": "ResNetV1c"}
        with pytest.raises(WorkError, match="built a ResNetV1c"):
            build_model(settings, receipt, 0)


def test_several_processes_without_gpus_are_refused():
    from carryover.core.training.distributed import Ranks
    from carryover.transfer.tasks.segmentation.mmseg.backend import BACKEND

    with pytest.raises(UserError, match="on GPUs only"):
        BACKEND.require(load("transfer", "upernet_r50_ade20k"), Ranks(0, 2, torch.device("cpu")))


def test_upernet_with_one_image_a_step_is_refused():
    from carryover.core.training.distributed import Ranks
    from carryover.transfer.tasks.segmentation.mmseg.backend import BACKEND

    config = load("transfer", "upernet_r50_ade20k", ["solver.ims_per_batch=1"])
    with pytest.raises(UserError, match="at least 2 images"):
        BACKEND.require(config, Ranks(0, 1, torch.device("cpu")))


def _data_of(root: Path) -> str:
    return (
        f"data: {{kind: folders, title: shapes, root: {root}, classes: [{', '.join(CLASSES)}],"
        " train: {image_dir: train/images, mask_dir: train/masks},"
        " test: {image_dir: val/images, mask_dir: val/masks}}\n"
    )
