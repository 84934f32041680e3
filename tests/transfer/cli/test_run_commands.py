"""A run is started in one directory, and looked at and resumed from another, by its path alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.core.backbones.layouts import network

CARRYOVER = str(Path(sys.executable).with_name("carryover"))
# No training: a file is brought, and proven to be whole.
PIPELINE = "checkpoint: theirs.pth\nconvert: [canonical]\n"


def carryover(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | variables
    return subprocess.run(
        [CARRYOVER, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


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
