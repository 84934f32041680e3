"""Evaluations that train, interrupted on a real SLURM, are the same evaluations bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carryover.configs import load
from carryover.core.data.shapes.write import write_shapes
from carryover.slurm import Graph, Ledger, Resources, Stage, run_graph
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.resources import Cluster as Settings
from carryover.slurm.runner import read_progress
from carryover.transfer.pipeline import stages
from carryover.transfer.results.reading import read_records
from carryover.transfer.results.record import ResultRecord
from tests.slurm_cluster.cluster import Cluster
from tests.slurm_cluster.waiting import at_rest, causes, wait_until
from tests.transfer.convert.backbones import write_backbone
from tests.transfer.tasks.detection.runs import TINY as TINY_DETECTION
from tests.transfer.tasks.segmentation import scenes

EXECUTOR = SlurmExecutor(
    Settings(defaults=Resources(time_min=20)), packages=("configs", "slurm", "pretrain", "transfer")
)
NAME = "evaluate"
# Long enough to be caught in the middle; the logged steps tell where it is.
ITERATIONS = 30
LENGTH = [f"solver.max_iter={ITERATIONS}", "log_every=1"]


def _detection(root: Path, backend: str) -> dict[str, Any]:
    data = write_shapes(root / "data", n_train=10, n_val=10, n_detection=10).detection
    keys = [f"data.root={data}", *TINY_DETECTION, *LENGTH, "solver.steps=[20]", f"backend={backend}"]
    return load("transfer", "demo_faster_fpn", keys).model_dump(mode="json", exclude={"name"})


def _segmentation(root: Path, backend: str) -> dict[str, Any]:
    config = scenes.recipe(scenes.write_folders(root), *LENGTH, f"backend={backend}")
    return config.model_dump(mode="json", exclude={"name"})


@pytest.mark.parametrize(
    ("recipe_of", "backend", "weights"),
    [
        pytest.param(_detection, "detectron2", "detector.safetensors", marks=pytest.mark.detectron2),
        pytest.param(_segmentation, "mmseg", "segmenter.safetensors", marks=pytest.mark.mmseg),
        (_detection, "torchvision", "detector.safetensors"),
        (_segmentation, "torchvision", "segmenter.safetensors"),
    ],
)
def test_a_requeued_evaluation_ends_as_an_undisturbed_one(
    cluster: Cluster,
    tmp_path: Path,
    recipe_of: Callable[[Path, str], dict[str, Any]],
    backend: str,
    weights: str,
) -> None:
    checkpoint = write_backbone(tmp_path / "backbone.safetensors")
    parameters = {
        "recipe": recipe_of(tmp_path / "set", backend),
        "name": "tiny",
        "checkpoint": str(checkpoint),
    }
    commands = {"requeued": ("scontrol", "requeue"), "signalled": ("scancel", "--signal=USR2")}
    runs = {name: tmp_path / name for name in ("undisturbed", *commands)}
    for run in runs.values():
        assert run_graph(Graph([Stage(NAME, stages.evaluate, parameters)]), EXECUTOR, run).succeeded
    for name, words in commands.items():
        _wait_for_the_middle(Ledger(runs[name]).out(NAME))
        record = Ledger(runs[name]).read(NAME)
        assert record is not None
        cluster.command(*words, record.job_ids[0])
    for run in runs.values():
        assert at_rest(cluster, run).succeeded
    ended = {name: causes(run, NAME) for name, run in runs.items()}
    assert ended == {"undisturbed": [""], "requeued": ["requeue", ""], "signalled": ["signal", ""]}

    results = {name: _result(run) for name, run in runs.items()}
    assert results["undisturbed"].facts["iterations"] == ITERATIONS
    for name in commands:
        assert results[name].metrics == results["undisturbed"].metrics
        for file in (weights, "metrics.jsonl"):
            ours, theirs = (Ledger(runs[n]).out(NAME) / file for n in (name, "undisturbed"))
            assert ours.read_bytes() == theirs.read_bytes(), f"{name}: {file}"


def _wait_for_the_middle(out: Path) -> None:
    def reached() -> bool:
        assert not (out / "result.json").exists(), "it finished before it could be interrupted"
        progress = read_progress(out)
        return progress is not None and 3 <= progress.step <= ITERATIONS - 5

    wait_until(reached, "the middle of a training")


def _result(run: Path) -> ResultRecord:
    (stored,), problems = read_records([run])
    assert not problems
    return stored.record
