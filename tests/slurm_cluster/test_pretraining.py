"""A pretraining of two processes on a real SLURM, interrupted, is the same pretraining bit for bit."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from carryover.slurm import Graph, Ledger, Resources, Stage, run_graph
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.ledger import Attempt
from carryover.slurm.resources import Cluster as Settings
from carryover.slurm.runner import read_progress
from carryover.transfer.pipeline.calls import STATE
from tests.pretrain import tiny
from tests.pretrain.tiny import write_images
from tests.slurm_cluster import tiny_training
from tests.slurm_cluster.cluster import Cluster
from tests.slurm_cluster.test_faults import preempt
from tests.slurm_cluster.waiting import at_rest, causes, wait_until

# 40 images in batches of 8.
EPOCH_STEPS, EPOCHS = 5, 60
EXECUTOR = SlurmExecutor(
    Settings(defaults=Resources(time_min=20)),
    packages=("configs", "slurm", "pretrain"),
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """UniGrad with everything that a resumed run has to get right: momentum encoder, F, SyncBN, two ranks."""
    root = write_images(tmp_path_factory.mktemp("images"))
    config = tiny.recipe("unigrad", root, ["batch_size=8", f"schedule.epochs={EPOCHS}", "log_every=1"])
    plain: dict[str, Any] = config.model_dump(mode="json", exclude={"name"})
    return plain


def test_interrupted_and_uninterrupted_weights_are_equal(
    cluster: Cluster, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    cases = ("uninterrupted", "requeued", "signalled")
    runs = {name: tmp_path / name for name in cases}
    for run in runs.values():
        stage = Stage("pretrain", tiny_training.pretrain, {"recipe": recipe}, Resources(tasks_per_node=2))
        assert run_graph(Graph([stage]), EXECUTOR, run).succeeded
    for name, words in {
        "requeued": ("scontrol", "requeue"),
        "signalled": ("scancel", "--signal=USR2"),
    }.items():
        _wait_for_mid_epoch(Ledger(runs[name]).out("pretrain"))
        record = Ledger(runs[name]).read("pretrain")
        assert record is not None
        cluster.command(*words, record.job_ids[0])
    for run in runs.values():
        assert at_rest(cluster, run).succeeded
    attempts = {name: causes(run, "pretrain") for name, run in runs.items()}
    assert attempts == {"uninterrupted": [""], "requeued": ["requeue", ""], "signalled": ["signal", ""]}

    weights = {name: _weights(run) for name, run in runs.items()}
    for name in cases[1:]:
        assert weights[name].keys() == weights["uninterrupted"].keys()
        for key, value in weights["uninterrupted"].items():
            assert np.array_equal(value, weights[name][key]), f"{name}: {key}"
    ports = [
        json.loads(p.read_text())["port"]
        for p in (runs["signalled"] / "stages/pretrain/rendezvous").iterdir()
    ]
    assert len(ports) == 2


def test_two_nodes_preempted_with_no_time_but_killwait_keep_their_state(
    bare_cluster: Cluster, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    """TERM, and KILL eight seconds later; the log has a line only every hundred thousand steps."""
    quiet = {**recipe, "log_every": 100_000}
    shapes = {"uninterrupted": {"partition": "urgent"}, "preempted": {"cpus_per_task": 2}}
    runs = {name: tmp_path / name for name in shapes}
    for name, run in runs.items():
        asked = Resources(nodes=2, **shapes[name])  # type: ignore[arg-type]
        stage = Stage("pretrain", tiny_training.pretrain, {"recipe": quiet}, asked)
        assert run_graph(Graph([stage]), EXECUTOR, run).succeeded
    state = Ledger(runs["preempted"]).out("pretrain") / STATE
    wait_until(lambda: bool(_attempts(runs["preempted"])) and _trains(runs["preempted"]), "the training")
    before = state.stat().st_mtime_ns if state.exists() else 0
    preempt(bare_cluster, spare=1)
    wait_until(lambda: _attempts(runs["preempted"])[0].ended is not None, "the end of the first attempt")
    (first,) = _attempts(runs["preempted"])
    assert first.state == "interrupted"
    assert state.stat().st_mtime_ns > before, "nothing was saved"
    for run in runs.values():
        assert at_rest(bare_cluster, run).succeeded
    cause, last = causes(runs["preempted"], "pretrain")
    # Without grace, a preemption is a requeue by the controller. The signal is recorded before the controller
    # is asked, and stays where the KILL comes before the answer.
    assert cause in ("preemption", "requeue", "SIGTERM") and last == ""
    weights = {name: _weights(run) for name, run in runs.items()}
    for key, value in weights["uninterrupted"].items():
        assert np.array_equal(value, weights["preempted"][key]), key


def _attempts(run: Path) -> Sequence[Attempt]:
    record = Ledger(run).read("pretrain")
    return record.attempts if record is not None else ()


def _trains(run: Path) -> bool:
    """Whether the ranks have met, and the steps have begun: an epoch's end leaves a state."""
    return (Ledger(run).out("pretrain") / STATE).exists()


def _wait_for_mid_epoch(out: Path) -> None:
    def reached() -> bool:
        assert not (out / "backbone.safetensors").exists(), "it finished before it could be interrupted"
        progress = read_progress(out)
        return progress is not None and progress.step > EPOCH_STEPS and progress.step % EPOCH_STEPS != 0

    wait_until(reached, "the middle of an epoch")


def _weights(run: Path) -> dict[str, np.ndarray]:
    with safe_open(Ledger(run).out("pretrain") / "backbone.safetensors", framework="numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dictionary)
