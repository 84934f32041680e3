"""Containers of one host name that number their processes apart: a run in one is not dead to another."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from carryover.slurm import Ledger, RunError, submission
from carryover.slurm.control import cancel, retry
from carryover.slurm.executor import InlineExecutor
from carryover.slurm.status import status
from tests.slurm import work  # noqa: F401 (makes its calls known)

ROOT = Path(__file__).parents[2]
APART = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    try:
        done = subprocess.run([*APART, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare (util-linux) here to number processes apart with")
    if done.returncode:
        pytest.skip(f"processes cannot be numbered apart here: {done.stderr.strip()}")


def contained(run: Path, executor: str, door: Path) -> "subprocess.Popen[bytes]":
    """Run a stage that waits for a door, in a numbering of its own; return when it has begun."""
    program = (
        "from pathlib import Path\n"
        "from carryover.slurm import Graph, Stage, run_graph\n"
        "from carryover.slurm.executor import EXECUTORS\n"
        "from tests.slurm import work\n"
        f"graph = Graph([Stage('train', work.wait_for, {{'path': {str(door)!r}, 'seconds': 120}})])\n"
        f"run_graph(graph, EXECUTORS.get({executor!r}).of({{}}), Path({str(run)!r}))\n"
    )
    process = subprocess.Popen([*APART, sys.executable, "-c", program], cwd=ROOT)
    begun = Ledger(run).out("train") / "begun.txt"
    for _ in range(1200):
        if begun.exists():
            return process
        time.sleep(0.05)
    raise AssertionError("the run never began")


@pytest.fixture(params=["inline", "local"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, "subprocess.Popen[bytes]"]]:
    process = contained(tmp_path / "run", request.param, tmp_path / "door")
    yield tmp_path / "run", process
    process.kill()
    process.wait()


def attempts(run: Path) -> int:
    record = Ledger(run).read("train")
    assert record is not None
    return len(record.attempts)


def test_a_run_in_another_container_is_neither_taken_over_nor_signalled(
    run: tuple[Path, "subprocess.Popen[bytes]"],
) -> None:
    directory, process = run
    record = Ledger(directory).read("train")
    assert record is not None and record.attempts[0].pid < 100, "it sees a number of its own"
    now = status(directory)
    assert now.stages[0].state == "running" and now.holder is not None
    with pytest.raises(RunError, match="has been at work on this run"):
        retry(directory)
    with pytest.raises(RunError, match="cannot be seen from here"):
        cancel(directory)
    assert process.poll() is None
    (directory.parent / "door").touch()
    assert process.wait(60) == 0
    now = status(directory)
    assert now.succeeded and attempts(directory) == 1


def test_a_container_that_was_killed_is_given_up_when_its_heart_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "_DEAD_AFTER_SECONDS", 4.0)
    monkeypatch.setattr(submission, "_WATCH_SECONDS", 7.0)
    directory, door = tmp_path / "run", tmp_path / "door"
    process = contained(directory, "inline", door)
    process.kill()
    process.wait()
    assert status(directory).stages[0].state == "running", "it has just been heard of"
    beat = (directory / "submissions/0001.json").stat().st_mtime
    os.utime(directory / "submissions/0001.json", (beat - 10, beat - 10))
    assert status(directory).stages[0].state == "interrupted"
    door.touch()
    assert retry(directory, executor=InlineExecutor()).succeeded and attempts(directory) == 2


def test_a_number_means_nothing_in_another_container(tmp_path: Path) -> None:
    """Two at once, whose processes have the same numbers: each is held by its own heart."""
    doors = [tmp_path / name for name in ("one", "two")]
    processes = [contained(tmp_path / f"run-{door.name}", "inline", door) for door in doors]
    first, second = (Ledger(tmp_path / f"run-{door.name}").read("train") for door in doors)
    assert first is not None and second is not None
    assert first.attempts[0].space != second.attempts[0].space
    assert first.attempts[0].host == second.attempts[0].host
    for door in doors:
        with pytest.raises(RunError, match="has been at work"):
            retry(tmp_path / f"run-{door.name}")
        door.touch()
    assert [process.wait(60) for process in processes] == [0, 0]
