"""A run is started in one directory, and looked at and resumed from another, by its path alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from carryover.core.data.shapes.write import write_shapes
from carryover.slurm import Graph, InlineExecutor, Stage, run_graph
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.local import LocalExecutor
from carryover.transfer.cli import run_commands
from tests.core.backbones.layouts import network
from tests.slurm import fake_slurm, work
from tests.slurm.fake_slurm import FakeSlurm
from tests.transfer.convert.backbones import write_backbone

CARRYOVER = str(Path(sys.executable).with_name("carryover"))
# No training: a file is brought, and proven to be whole.
PIPELINE = "checkpoint: theirs.pth\nconvert: [canonical]\n"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A faked cluster in front of PATH."""
    return fake_slurm.install(tmp_path / "fake", monkeypatch)


def carryover(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | variables
    return subprocess.run(
        [CARRYOVER, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def test_exit_statuses_say_how_a_run_stands(
    tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its way 0, unknown 3, killed 1; to follow is to go on while it is unknown."""
    run = tmp_path / "run"
    graph = Graph([Stage("train", work.write)])
    run_graph(graph, SlurmExecutor(), run)
    assert run_commands.print_status(run) == 0
    queued = fake.queue
    fake.break_command("squeue", "Unable to contact slurm controller")
    assert run_commands.print_status(run) == 3
    looks: list[str] = []

    def look_again(seconds: float) -> None:
        looks.append("unknown" if (fake.root / "squeue.broken").exists() else "at work")
        if looks[-1] == "unknown":
            fake.mend("squeue")
            return
        fake.set_queue({"101": ["FAILED", "NonZeroExitCode", queued["101"][2], 9]})

    monkeypatch.setattr(run_commands, "time", SimpleNamespace(sleep=look_again))
    assert run_commands.print_status(run, follow=True) == 1
    assert looks == ["unknown", "at work"]
    run_graph(graph, InlineExecutor(), run)
    assert run_commands.print_status(run) == 0
    # Nobody is at work on what is left.
    run_graph(Graph([Stage("stops", work.stop_half_way)]), InlineExecutor(), tmp_path / "stopped")
    assert run_commands.print_status(tmp_path / "stopped") == 1


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_an_error_is_shown_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    """It is a stage's reason and the end of its log."""
    monkeypatch.setenv("COLUMNS", "400")
    run, by = tmp_path / "run", InlineExecutor() if executor == "inline" else LocalExecutor()
    run_graph(Graph([Stage("breaks", work.fail)]), by, run)
    while run_commands.print_status(run) == 0:
        time.sleep(0.1)
    # However wide the terminal is: a table breaks its lines.
    shown = " ".join(capsys.readouterr().out.split("breaks")[-1].split())
    assert "failed" in shown and shown.count("no such color") == 1, shown


@pytest.mark.slow
def test_an_evaluation_that_a_signal_stops_says_so(tmp_path: Path) -> None:
    """In its training, where its state is saved; and where nothing is to be saved."""
    data = write_shapes(tmp_path / "data", n_train=200, n_val=20, n_detection=4).classification
    checkpoint = write_backbone(tmp_path / "backbone.safetensors")
    keys = [f"data.root={data}", "image.input_size=any", "schedule.epochs=100000", "log_every=1"]
    words = [CARRYOVER, "evaluate", "demo_finetune_10percent", "-c", str(checkpoint), *keys]
    out = tmp_path / "out"
    process = subprocess.Popen([*words, "--out", str(out)], stderr=subprocess.PIPE, text=True)
    while not list(out.rglob("metrics.jsonl")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR2)
    said = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGUSR2
    assert "interrupted by SIGUSR2; the state is saved, run again to resume" in said
    process = subprocess.Popen([*words, "--out", str(out)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM and "SIGTERM" in said and "run again" in said


@pytest.mark.slow
def test_a_local_run_is_known_to_every_shell_that_sees_its_directory(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (here / "mine.yaml").write_text(PIPELINE, encoding="utf-8")
    torch.save({"state_dict": network(seed=0).state_dict()}, here / "theirs.pth")

    done = carryover("run", "mine.yaml", "--executor", "local", cwd=here, NCCL_DEBUG="WARN", MY_TOKEN="hush")
    assert done.returncode == 0, done.stderr
    run = str(here / "runs" / "mine")

    seen = carryover("status", run, cwd=elsewhere)
    assert seen.returncode == 0 and "2 finished" in seen.stdout
    rows = [line for line in seen.stdout.splitlines() if line.startswith(("import/", "convert/"))]
    assert [row.split()[:2] for row in rows] == [
        ["import/theirs", "finished"],
        ["convert/theirs", "finished"],
    ]

    said = carryover("logs", run, "convert/theirs", cwd=elsewhere)
    assert "120 of 120 tensors carried" in said.stdout
    wrong = carryover("logs", run, "convert/their", cwd=elsewhere)
    assert wrong.returncode == 2 and "convert/their" in wrong.stderr
    assert "nothing was running" in carryover("cancel", run, cwd=elsewhere).stdout

    again = carryover("retry", run, cwd=elsewhere)
    assert again.returncode == 0 and again.stderr.count("skipped") >= 2
    assert not list(elsewhere.iterdir())

    first = json.loads((here / "runs/mine/submissions/0001.json").read_text(encoding="utf-8"))
    origin = first["origin"]
    assert origin["directory"] == str(here)
    assert Path(origin["python"]).resolve() == Path(sys.executable).resolve()
    assert {"user", "python_version", "libraries", "git_revision"} <= origin.keys()
    assert origin["pipeline"] == "mine.yaml" and origin["overrides"] == []
    assert origin["environment"]["NCCL_DEBUG"] == "WARN" and "MY_TOKEN" not in origin["environment"]
