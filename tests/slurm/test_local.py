"""The local executor: several stages at once in processes of their own, dependencies kept, state saved."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from carryover.slurm import (
    Event,
    Graph,
    GraphResult,
    Ledger,
    Output,
    RequestError,
    Resources,
    Stage,
    run_graph,
)
from carryover.slurm.local import LocalExecutor, visible_gpus
from tests.slurm import work


def run(
    run_dir: Path, *stages: Stage, executor: LocalExecutor | None = None
) -> tuple[GraphResult, list[Event]]:
    events: list[Event] = []
    result = run_graph(Graph(stages), executor or LocalExecutor(), run_dir, on_event=events.append)
    return result, events


def wait_until(path: Path, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.05)


def test_a_graph_runs_in_processes_of_its_own(tmp_path: Path) -> None:
    result, events = run(
        tmp_path,
        Stage("text", work.write, {"text": "words"}),
        Stage("copy", work.copy, {"source": Output("text", "result.txt")}),
        Stage("bad", work.fail),
        Stage("needs", work.write, depends_on=("bad",)),
    )
    states = {name: o.state for name, o in result.stages.items()}
    assert states == {"text": "finished", "copy": "finished", "bad": "failed", "needs": "blocked"}
    assert (result.stages["copy"].out / "copy.txt").read_text() == "words"
    assert result.stages["bad"].reason == "ValueError: no such color"
    order = [(e.stage, e.state) for e in events]
    assert order.index(("text", "finished")) < order.index(("copy", "running"))
    record = Ledger(tmp_path).read("text")
    assert record is not None and record.attempts[0].pid != os.getpid()


def test_stages_run_side_by_side(tmp_path: Path) -> None:
    meeting = tmp_path / "met"
    meeting.mkdir()
    both = [
        Stage("one", work.rendezvous, {"own": str(meeting / "1"), "other": str(meeting / "2")}),
        Stage("two", work.rendezvous, {"own": str(meeting / "2"), "other": str(meeting / "1")}),
    ]
    result, _ = run(tmp_path / "run", *both)
    assert result.succeeded


def test_the_processes_of_a_stage_find_one_another(tmp_path: Path) -> None:
    result, _ = run(tmp_path, Stage("a", work.meet, resources=Resources(tasks_per_node=2)))
    assert result.succeeded
    seen = [(result.stages["a"].out / f"rank{rank}.txt").read_text().split() for rank in (0, 1)]
    assert [s[:3] for s in seen] == [["0", "2", "0"], ["1", "2", "1"]]
    assert seen[0][3:] == seen[1][3:] and seen[0][3] == "127.0.0.1"


def test_gpus_are_not_shared(tmp_path: Path) -> None:
    one = Resources(gpus_per_node=1)
    stages = [Stage(name, work.tell_gpus, {"n": n}, resources=one) for n, name in enumerate("abc")]
    result, _ = run(tmp_path, *stages, executor=LocalExecutor(at_once=3, gpus=(4, 7)))
    seen = sorted((result.stages[name].out / "gpus.txt").read_text() for name in "abc")
    assert seen in (["4", "4", "7"], ["4", "7", "7"])


def test_more_gpus_than_there_are_is_said_before_anything_runs(tmp_path: Path) -> None:
    stages = (Stage("a", work.write), Stage("b", work.write, resources=Resources(gpus_per_node=8)))
    with pytest.raises(RequestError, match="stage b asks for 8 GPUs; this machine has 2"):
        run(tmp_path, *stages, executor=LocalExecutor(gpus=(0, 1)))
    assert not Ledger(tmp_path).out("a").exists()


def test_visible_gpus_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert visible_gpus() == (2, 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()


def test_a_stop_signal_reaches_the_stages_and_they_resume(tmp_path: Path) -> None:
    door = tmp_path / "door"
    stage = Stage("train", work.wait_for, {"path": str(door)})
    begun = Ledger(tmp_path / "run").out("train") / "begun.txt"

    def interrupt() -> None:
        wait_until(begun)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result, _ = run(tmp_path / "run", stage)
    thread.join()
    assert (result.signum, result.stages["train"].state) == (signal.SIGINT, "interrupted")
    assert (result.stages["train"].out / "state.txt").read_text() == "saved"
    door.touch()
    result, events = run(tmp_path / "run", stage)
    assert result.succeeded and events[0].reason == "resumes: interrupted (stopped by SIGTERM)"


def test_what_needs_an_interrupted_stage_is_not_started(tmp_path: Path) -> None:
    result, _ = run(
        tmp_path, Stage("stops", work.stop_half_way), Stage("needs", work.write, depends_on=("stops",))
    )
    assert {n: o.state for n, o in result.stages.items()} == {"stops": "interrupted", "needs": "blocked"}
    assert result.stages["needs"].reason == "stops interrupted"


def test_a_killed_process_is_a_failure_of_its_stage_alone(tmp_path: Path) -> None:
    stages = (Stage("dies", work.kill_hard), Stage("other", work.write))
    result, _ = run(tmp_path, *stages)
    assert {n: o.state for n, o in result.stages.items()} == {"dies": "failed", "other": "finished"}
    assert "its process was killed" in result.stages["dies"].reason
    record = Ledger(tmp_path).read("dies")
    assert record is not None and (record.attempts[0].cause, record.attempts[0].state) == (
        "killed",
        "interrupted",
    )


def test_jobs_import_the_snapshot_not_the_working_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    (tree / "mypackage").mkdir(parents=True)
    (tree / "mypackage/__init__.py").write_text("")
    (tree / "mypackage/work.py").write_text(
        "import os\n"
        "def say(out):\n"
        "    (out / 'said.txt').write_text(__file__)\n"
        "    (out / 'revision.txt').write_text(os.environ['CARRYOVER_GIT_REVISION'])\n"
    )
    git = ["git", "-C", str(tree), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    (tree / "mypackage/more.py").write_text("")
    monkeypatch.syspath_prepend(str(tree))
    monkeypatch.chdir(tree)
    stage = Stage("a", "mypackage.work:say")
    result, _ = run(tmp_path / "run", stage, executor=LocalExecutor(packages=("mypackage", "slurm")))
    said = Path((result.stages["a"].out / "said.txt").read_text())
    assert said.is_relative_to(tmp_path / "run/code")
    assert (result.stages["a"].out / "revision.txt").read_text() == f"{head.strip()}+changes"
    assert "CARRYOVER_GIT_REVISION" not in os.environ
