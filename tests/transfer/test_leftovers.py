"""One directory has one process at a time, and what failed or was killed leaves nothing of no use there."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import carryover
from carryover.configs import UserError, WorkError
from carryover.slurm import RunError
from carryover.transfer.cli.commands import convert_checkpoint, evaluate_checkpoint
from carryover.transfer.cli.main import app
from carryover.transfer.cli.run_commands import run_pipeline
from carryover.transfer.convert import conversion
from carryover.transfer.tasks import holding
from tests.core.backbones.layouts import network
from tests.transfer.tasks.classification.samples import write_checkpoint, write_images

SMALL = {"image": {"size": 32, "resize": 32}, "precision": "fp32", "workers": 0}
KEYS = ["image.size=32", "image.resize=32", "precision=fp32", "workers=0"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_images(tmp_path / "data" / "train", 4, seed=0)
    write_images(tmp_path / "data" / "val", 2, seed=1)
    write_checkpoint(tmp_path / "mine.safetensors")
    torch.save(network(0).state_dict(), tmp_path / "theirs.pth")
    return tmp_path


@pytest.fixture
def holder(files: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds files / "out" as an evaluation does."""
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from carryover.transfer.tasks.holding import alone_in\n"
        "with alone_in(Path(sys.argv[1]), 'evaluate', 'result.json'):\n"
        "    print('held', flush=True)\n    time.sleep(300)\n"
    )
    words = [sys.executable, "-c", program, str(files / "out")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with process:
        yield process
        process.kill()


def contents(directory: Path) -> dict[str, bytes]:
    found = (p for p in directory.rglob("*") if p.is_file())
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in found}


def knn(files: Path, name: str, out: Path, k: int = 3) -> None:
    evaluate_checkpoint("demo_knn", files / name, [f"data.root={files / 'data'}", f"k=[{k}]", *KEYS], out)


def test_a_second_evaluation_in_a_directory_is_refused_while_the_first_lives(
    files: Path, holder: subprocess.Popen[str]
) -> None:
    out, host = files / "out", os.uname().nodename
    before = contents(files)
    said = rf"out: process {holder.pid} on {host} has been at work in this directory since \d{{4}}-\d\d-\d\d "
    with pytest.raises(RunError, match=said + r".*\(carryover evaluate\); wait for it, or stop it"):
        knn(files, "theirs.pth", out)
    with pytest.raises(RunError, match=said):
        carryover.evaluate(files / "theirs.pth", "demo_knn", data=files / "data", out=out, k=[3], **SMALL)
    refused = CliRunner().invoke(app, ["pretrain", "random_r18", "--out", str(out)])
    assert isinstance(refused.exception, RunError)
    assert contents(files) == before
    holder.kill()
    holder.wait()
    knn(files, "mine.safetensors", out)
    assert (out / "result.json").is_file()


def test_a_finished_evaluation_is_read_whoever_holds_the_directory(files: Path) -> None:
    out = files / "out"
    knn(files, "mine.safetensors", out)
    before = contents(files)
    with holding.alone_in(out, "evaluate", "nothing.json"):
        held = contents(files)
        knn(files, "mine.safetensors", out)
        assert contents(files) == held
    assert before.items() <= contents(files).items()


def test_a_copy_of_a_directory_at_work_is_not_held(files: Path, holder: subprocess.Popen[str]) -> None:
    copy = files / "copy"
    for name, content in contents(files / "out").items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    with holding.alone_in(copy, "evaluate", "result.json"):
        pass


def test_an_evaluation_in_a_run_directory_is_refused(files: Path) -> None:
    run = files / "run"
    (files / "pipe.yaml").write_text("checkpoint: theirs.pth\nconvert: [canonical]\n", encoding="utf-8")
    assert run_pipeline(str(files / "pipe.yaml"), run, "inline", []) == 0
    before = contents(run)
    with pytest.raises(UserError, match=r"run: a run directory; choose another one with --out"):
        knn(files, "mine.safetensors", run)
    assert contents(run) == before


def test_failed_commands_leave_what_was_there_and_nothing_else(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "old").mkdir()
    (files / "old/note.txt").write_text("mine", encoding="utf-8")
    before = contents(files)
    folders = {path for path in files.rglob("*") if path.is_dir()}
    for out in (files / "new/out", files / "old"):
        with pytest.raises(UserError, match="k: 200 neighbors of 24 labeled images"):
            knn(files, "theirs.pth", out, k=200)
    with pytest.raises(UserError, match="k: 200 neighbors"):
        carryover.evaluate(
            files / "theirs.pth", "demo_knn", data=files / "data", out=files / "new", k=[200], **SMALL
        )
    pretrain = ["pretrain", "unigrad_demo", f"data.root={files / 'data'}", "batch_size=1"]
    failed = CliRunner().invoke(app, [*pretrain, "--out", str(files / "new/pretraining")])
    assert isinstance(failed.exception, UserError)

    def fails(*arguments: object) -> None:
        raise WorkError("not carried")

    with monkeypatch.context() as patched, pytest.raises(WorkError):
        patched.setattr(conversion, "_prove", fails)
        convert_checkpoint(files / "theirs.pth", "torchvision", files / "new/deep/x.pth", None)
    (files / "pipe.yaml").write_text(
        "checkpoint: theirs.pth\nconvert: [canonical]\n"
        "evaluate: [{recipe: demo_knn, overrides: [data.root=nowhere]}]\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match="nowhere: no such directory"):
        run_pipeline(str(files / "pipe.yaml"), files / "new/run", "inline", [])
    (files / "pipe.yaml").unlink()
    assert contents(files) == before
    assert {path for path in files.rglob("*") if path.is_dir()} == folders


def test_the_next_command_removes_the_temporaries_of_one_that_was_killed(files: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    mark = f"{os.uname().nodename}.{int(killed.stdout)}.1-0.tmp"
    (files / "pipe.yaml").write_text("checkpoint: theirs.pth\nconvert: [canonical]\n", encoding="utf-8")
    left = [
        f"out/.checkpoint.pt.{mark}",
        f"out/features/key/.meta.json.{mark}",
        f"converted/.x.pth.{mark}/x.pth",
        f"run/.pipeline.json.{mark}",
        f"run/submissions/.0001.json.{mark}",
        f"run/stages/import/theirs/.stage.json.{mark}",
        f"run/stages/import/theirs/out/.backbone.safetensors.{mark}",
        f"report/.index.html.{mark}",
    ]
    for name in left:
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text("half", encoding="utf-8")
    knn(files, "mine.safetensors", files / "out")
    convert_checkpoint(files / "theirs.pth", "torchvision", files / "converted/x.pth", None)
    assert run_pipeline(str(files / "pipe.yaml"), files / "run", "inline", []) == 0
    assert CliRunner().invoke(app, ["report", str(files / "out"), "-o", str(files / "report")]).exit_code == 0
    assert not list(files.rglob(f"*{mark}"))
