"""Results survive: nothing is done again for what changes no number, everything is for what does."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carryover.configs import UserError, load
from carryover.core.data.shapes.write import write_shapes
from carryover.core.training.interrupt import Interrupted
from carryover.pretrain.method_config import SiMoConfig, UniGradConfig
from carryover.slurm.control import retry
from carryover.slurm.executor import InlineExecutor, run_graph
from carryover.slurm.ledger import Ledger
from carryover.slurm.plan import Action, Decision, make_plan
from carryover.slurm.status import status
from carryover.transfer.pipeline.plan import plan
from carryover.transfer.results.reading import read_records
from carryover.transfer.tasks.evaluate import evaluate
from carryover.transfer.tasks.finetune.config import FinetuneConfig
from tests.golden.make_v1 import CLASSIFY
from tests.interrupting import stop_after

_DATA = '"data.root=${roots.classification}"'
_SMALL = (
    '"augment.view.size=32", "batch_size=16", "schedule.epochs=1", "schedule.warmup_epochs=0", "workers=0"'
)
_QUOTED = ", ".join(f'"{override}"' for override in CLASSIFY)


def small_pipeline(run: Path, data: Path, pretrain: str = "", evaluation: str = "", *more: str) -> Any:
    """Pretrain one epoch on 16 images and classify by nearest neighbors; `data` may lie anywhere."""
    overrides = [
        f"roots.classification={data}",
        "convert=[canonical]",
        f"pretrain=[{{recipe: unigrad_demo, overrides: [{_DATA}, {_SMALL}{pretrain}]}}]",
        f'evaluate=[{{recipe: demo_knn, overrides: [{_DATA}, {_QUOTED}, "k=[5]"{evaluation}]}}]',
        *more,
    ]
    return plan(load("pipelines", "demo", ["shapes=null", *overrides]), run)


def decided(run: Path, *arguments: Any) -> dict[str, Decision]:
    made = make_plan(small_pipeline(run, *arguments), Ledger(run), lambda record: "")
    return {d.stage.name: d for d in made}


def to_do(decisions: dict[str, Decision]) -> dict[str, list[str]]:
    """The stages that are not skipped, with what changed."""
    return {
        name.split("/")[0]: [str(x) for x in d.differences]
        for name, d in decisions.items()
        if d.action is not Action.SKIP
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set and a run on it that finished; not to be changed."""
    root = tmp_path_factory.mktemp("small")
    data = write_shapes(root / "shapes", n_train=16, n_val=10, n_detection=4).classification
    run = root / "run"
    assert run_graph(small_pipeline(run, data), InlineExecutor(), run).succeeded
    return data, run


@pytest.fixture
def mine(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, to be changed."""
    data, run = made
    return shutil.copytree(data, tmp_path / "data"), shutil.copytree(run, tmp_path / "run")


def test_what_is_incidental_does_nothing_again(made: tuple[Path, Path]) -> None:
    data, run = made
    for pretrain in (', "workers=1"', ', "log_every=3"', ', "checkpoint_every=2"', ', "tensorboard=true"'):
        assert to_do(decided(run, data, pretrain)) == {}, pretrain
    assert to_do(decided(run, data, "", ', "workers=1", "extract_batch=7"')) == {}


def test_data_that_lie_elsewhere_are_the_same_data(mine: tuple[Path, Path]) -> None:
    data, run = mine
    assert to_do(decided(run, data)) == {}
    shutil.rmtree(data)
    assert to_do(decided(run, data)) == {}, "of data that are gone nothing is known, and nothing is done"


def test_the_plan_names_key_old_value_and_new_value(made: tuple[Path, Path]) -> None:
    data, run = made
    again = to_do(decided(run, data, "", ', "temperatures=[0.1]"'))
    assert again.keys() == {"evaluate", "report"}
    assert again["evaluate"] == ["temperatures: [0.07] -> [0.1]"]
    again = to_do(decided(run, data, ', "optimizer.momentum=0.8"'))
    assert again.keys() == {"pretrain", "convert", "evaluate", "report"}
    assert again["pretrain"] == ["optimizer.momentum: 0.9 -> 0.8"]


def test_a_mended_metric_is_measured_again_and_a_mended_method_trains_again(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = made
    from carryover.transfer.tasks.knn.config import KnnConfig

    knn, unigrad = KnnConfig.version, UniGradConfig.version
    monkeypatch.setattr(FinetuneConfig, "version", FinetuneConfig.version + 1)
    monkeypatch.setattr(SiMoConfig, "version", SiMoConfig.version + 1)
    assert to_do(decided(run, data)) == {}, "other tasks and methods"
    monkeypatch.setattr(KnnConfig, "version", knn + 1)
    again = to_do(decided(run, data))
    assert again.keys() == {"evaluate", "report"} and again["evaluate"] == [f"version: {knn} -> {knn + 1}"]
    monkeypatch.setattr(UniGradConfig, "version", unigrad + 1)
    assert to_do(decided(run, data))["pretrain"] == [f"version: {unigrad} -> {unigrad + 1}"]


def test_mended_data_are_new_data(mine: tuple[Path, Path]) -> None:
    data, run = mine
    picture = next((data / "val").glob("*/*.png"))
    pixels = np.asarray(Image.open(picture)).copy()
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(picture)
    again = to_do(decided(run, data))
    assert again.keys() == {"evaluate", "report"}, "the training images are as they were"
    assert [d.partition(":")[0] for d in again["evaluate"]] == ["data"]
    before = read_records([run])[0][0].record
    assert run_graph(small_pipeline(run, data), InlineExecutor(), run).succeeded
    now = read_records([run])[0][0].record
    assert now.data_digest != before.data_digest and to_do(decided(run, data)) == {}


def test_a_command_given_other_data_does_not_answer_with_the_old_number(
    mine: tuple[Path, Path], tmp_path: Path
) -> None:
    data, run = mine
    checkpoint = Ledger(run).out("pretrain/unigrad_demo-seed0") / "backbone.safetensors"
    config = load("transfer", "demo_knn", [f"data.root={data}", *CLASSIFY, "k=[5]"])
    evaluate(config, checkpoint, tmp_path / "out")
    assert evaluate(config, checkpoint, tmp_path / "out").metrics
    next((data / "train").glob("*/*.png")).unlink()
    before = sorted((p.name, p.read_bytes()) for p in (tmp_path / "out").iterdir() if p.is_file())
    with pytest.raises(
        UserError, match=r"result\.json: holds another result: data: [0-9a-f]{8} -> [0-9a-f]{8};"
    ):
        evaluate(config, checkpoint, tmp_path / "out")
    assert before == sorted((p.name, p.read_bytes()) for p in (tmp_path / "out").iterdir() if p.is_file())


def test_a_result_that_is_gone_or_empty_is_named_and_done_again(mine: tuple[Path, Path]) -> None:
    data, run = mine
    name = "evaluate/unigrad_demo-seed0/demo_knn-seed0"
    result = Ledger(run).out(name) / "result.json"
    for spoil in (result.unlink, lambda: result.write_text("")):
        before = read_records([run])[0][0].record.metrics
        spoil()
        (broken,) = (s for s in status(run).stages if s.state == "damaged")
        assert broken.name == name and str(result) in broken.reason
        assert decided(run, data)[name].unfit == ("result.json",)
        assert run_graph(small_pipeline(run, data), InlineExecutor(), run).succeeded
        assert read_records([run])[0][0].record.metrics == before
        assert status(run).succeeded


def test_a_checkpoint_that_was_overwritten_is_made_again(mine: tuple[Path, Path]) -> None:
    data, run = mine
    checkpoint = Ledger(run).out("pretrain/unigrad_demo-seed0") / "backbone.safetensors"
    good = checkpoint.read_bytes()
    checkpoint.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert "has other contents" in decided(run, data)["pretrain/unigrad_demo-seed0"].reason
    assert run_graph(small_pipeline(run, data), InlineExecutor(), run).succeeded
    assert status(run).succeeded and to_do(decided(run, data)) == {}


@pytest.mark.parametrize("how", ["copied", "renamed", "another spelling"])
def test_a_run_directory_that_moved_is_worked_on_where_it_is(
    mine: tuple[Path, Path], tmp_path: Path, how: str
) -> None:
    data, run = mine
    there = tmp_path / "elsewhere" / "run"
    there.parent.mkdir()
    if how == "copied":
        shutil.copytree(run, there)
    elif how == "renamed":
        run.rename(there)
    else:
        there.symlink_to(run, target_is_directory=True)
    original = _contents(run) if how == "copied" else None
    (there / "stages/report/out/../../../report/index.html").unlink()
    assert to_do(decided(there, data)).keys() == {"report"}
    assert retry(there).succeeded and (there / "report/index.html").is_file()
    (stored,) = read_records([there])[0]
    assert Path(stored.record.checkpoint).samefile(
        there / "stages/pretrain/unigrad_demo-seed0/out/backbone.safetensors"
    )
    if original is not None:
        assert _contents(run) == original, "nothing was written into the original"


def test_commands_reach_a_run_from_any_directory(
    mine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = mine
    carryover = str(Path(sys.executable).with_name("carryover"))
    (run / "report/index.html").unlink()
    for command in (["retry"], ["status"], ["report"]):
        words = [carryover, command[0], os.path.relpath(run, run.parents[1])]
        done = subprocess.run(words, cwd=run.parents[1], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (run / "report/index.html").is_file() and not (run.parents[1] / "report").exists()


def test_records_are_written_once_and_costs_beside_them(mine: tuple[Path, Path]) -> None:
    _, run = mine
    (path,) = run.glob("stages/evaluate/**/out/result.json")
    written = path.read_bytes()
    carryover = str(Path(sys.executable).with_name("carryover"))
    done = subprocess.run([carryover, "report", str(run)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == written and "attempts" not in json.loads(written)
    costs = json.loads(path.with_name("costs.json").read_text(encoding="utf-8"))
    assert costs["attempts"] == 1 and costs["schema_version"] == 1
    assert read_records([run])[0][0].record.attempts == 1


def _contents(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def test_a_result_that_was_relabeled_stands_in_the_report(mine: tuple[Path, Path]) -> None:
    data, run = mine
    overrides = f'overrides: [{_DATA}, {_QUOTED}, "k=[5]"]'
    labeled = f"evaluate=[{{recipe: demo_knn, label: neighbors, {overrides}}}]"
    again = to_do(decided(run, data, "", "", labeled))
    assert again.keys() == {"evaluate", "report"}
    assert run_graph(small_pipeline(run, data, "", "", labeled), InlineExecutor(), run).succeeded
    assert "neighbors" in (run / "report/index.html").read_text(encoding="utf-8")


def test_a_report_is_drawn_again_when_older_results_are_brought_back(mine: tuple[Path, Path]) -> None:
    data, run = mine
    other = ', "optimizer.momentum=0.8"'
    assert run_graph(small_pipeline(run, data, other), InlineExecutor(), run).succeeded
    decisions = decided(run, data)
    assert {d.action for n, d in decisions.items() if n != "report"} == {Action.RESTORE}
    assert decisions["report"].action is Action.REPLACE
    assert run_graph(small_pipeline(run, data), InlineExecutor(), run).succeeded
    (stored,) = read_records([run])[0]
    assert stored.record.checkpoint_sha256 in (run / "report/results.csv").read_text(encoding="utf-8")


def test_a_report_is_never_written_into_another_run(mine: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = mine
    graph = run / "pipeline.json"
    plain = json.loads(graph.read_text(encoding="utf-8"))
    (report,) = (s for s in plain["stages"] if s["name"] == "report")
    report["params"]["run_dir"] = str(tmp_path / "other")
    graph.write_text(json.dumps(plain), encoding="utf-8")
    (run / "report/index.html").unlink()
    result = retry(run)
    assert "holds the request for the report of another run" in result.stages["report"].reason
    assert not (tmp_path / "other").exists()


def pretraining(out: Path, root: Path, *more: str) -> Path:
    from carryover.pretrain.trainer import train

    small = [
        "augment.view.size=32",
        "batch_size=16",
        "schedule.epochs=1",
        "schedule.warmup_epochs=0",
        "workers=0",
    ]
    return train(load("pretrain", "unigrad_demo", [f"data.root={root}", *small, *more]), out)


def test_data_that_are_gone_do_not_make_the_next_data_welcome(
    mine: tuple[Path, Path], tmp_path: Path
) -> None:
    data, _ = mine
    other = write_shapes(tmp_path / "other", seed=1, n_train=16, n_val=10, n_detection=4).classification
    out = tmp_path / "out"
    pretraining(out, data)
    pretraining(out, tmp_path / "nowhere")
    known = (out / "identity.json").read_bytes()
    with pytest.raises(UserError, match=r"holds another work: data: [0-9a-f]{8} -> [0-9a-f]{8};"):
        pretraining(out, other)
    assert (out / "identity.json").read_bytes() == known


@pytest.mark.parametrize("lost", [("identity.json",), ("identity.json", "recipe.yaml")])
def test_a_state_refuses_other_work_even_without_what_lies_beside_it(
    mine: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[str, ...]
) -> None:
    data, _ = mine
    other = write_shapes(tmp_path / "other", seed=1, n_train=16, n_val=10, n_detection=4).classification
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        stop_after(1, signal.SIGTERM, patched)
        with pytest.raises(Interrupted):
            pretraining(out, data, "schedule.epochs=3")
    for name in lost:
        (out / name).unlink()
    before = sorted((p.name, p.read_bytes()) for p in out.iterdir() if p.is_file())
    for root, seed in ((other, 0), (data, 5)):
        with pytest.raises(UserError, match=r"holds another (training state|work): (seed|data): "):
            pretraining(out, root, "schedule.epochs=3", f"seed={seed}")
        assert before == sorted((p.name, p.read_bytes()) for p in out.iterdir() if p.is_file())
    assert pretraining(out, data, "schedule.epochs=3").is_file(), "its own work goes on"


def test_data_that_are_fetched_at_the_first_training_are_known_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    def fetched(self: CIFAR10, root: str, train: bool = True, download: bool = False) -> None:
        folder = Path(root) / CIFAR10.base_folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data_batch_1").write_bytes(b"fetched")
        self.data = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
        self.targets = [0] * 20
        self.classes = ["a"]

    monkeypatch.setattr(CIFAR10, "__init__", fetched)
    root = tmp_path / "cifar"
    root.mkdir()
    more = ("data.kind=cifar10", "data.download=true", "batch_size=4", "method.name=unigrad")
    pretraining(tmp_path / "out", root, *more)
    assert json.loads((tmp_path / "out/identity.json").read_text(encoding="utf-8"))["data"]
    assert pretraining(tmp_path / "out", root, *more).is_file()
