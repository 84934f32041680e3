"""Preemption, time limits, requeueing and cancelling on a real SLURM: work is saved, resumed and counted."""

from pathlib import Path

from carryover.slurm import Graph, Ledger, Resources, Stage, run_graph
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.control import cancel, retry
from carryover.slurm.ledger import StageRecord
from carryover.slurm.processes import process_start
from carryover.slurm.resources import Cluster as Settings
from carryover.slurm.status import status
from tests.slurm import work
from tests.slurm_cluster.cluster import Cluster
from tests.slurm_cluster.waiting import at_rest, states, unfinished, wait_for_file, wait_until

SETTINGS = Settings(defaults=Resources(time_min=10, signal_delay_s=20))


def submit(run: Path, *stages: Stage, settings: Settings = SETTINGS) -> None:
    assert run_graph(Graph(stages), SlurmExecutor(settings), run).succeeded


def waiting_stage(door: Path, name: str = "train", **asked: object) -> Stage:
    return Stage(name, work.wait_for, {"path": str(door), "seconds": 300}, Resources(**asked))  # type: ignore[arg-type]


def record(run: Path, name: str = "train") -> StageRecord:
    found = Ledger(run).read(name)
    assert found is not None
    return found


def saved(run: Path, name: str = "train") -> Path:
    return Ledger(run).out(name) / "state.txt"


def begun(run: Path, name: str = "train") -> Path:
    return Ledger(run).out(name) / "begun.txt"


def test_a_preempted_job_saves_goes_back_and_resumes(cluster: Cluster, tmp_path: Path) -> None:
    run, door = tmp_path / "run", tmp_path / "door"
    # A time limit this short would be a timeout by submitit's own reckoning; none is allowed here.
    submit(run, waiting_stage(door, cpus_per_task=cluster.cpus, time_min=5, max_timeouts=0))
    wait_for_file(begun(run))
    cluster.command(
        "sbatch",
        "--partition=urgent",
        f"--cpus-per-task={cluster.cpus}",
        "--output=/dev/null",
        "--wrap",
        "sleep 3",
    )
    wait_for_file(saved(run))
    door.touch()
    now = at_rest(cluster, run)
    assert now.succeeded, unfinished(now)
    assert [(a.state, a.cause) for a in record(run).attempts] == [
        ("interrupted", "preemption"),
        ("finished", ""),
    ]
    assert (now.stages[0].timeouts, now.stages[0].preemptions) == (0, 1)


def test_time_limits(cluster: Cluster, tmp_path: Path) -> None:
    """Side by side, since each waits for SLURM's clock: requeued, out of patience, and chained."""
    run, chained, door = tmp_path / "run", tmp_path / "chained", tmp_path / "door"
    submit(
        run,
        waiting_stage(door, "again", time_min=1),
        waiting_stage(door, "enough", time_min=1, max_timeouts=0),
        Stage("needs", work.write, depends_on=("enough",)),
    )
    no_requeue = Settings(defaults=SETTINGS.defaults, requeue=False)
    submit(
        chained,
        waiting_stage(door, "long", time_min=1, chain=3, max_timeouts=0),
        Stage("needs", work.write, depends_on=("long",)),
        settings=no_requeue,
    )
    for path in (saved(run, "again"), saved(run, "enough"), saved(chained, "long")):
        wait_for_file(path)
    door.touch()
    now = at_rest(cluster, run)
    assert states(now) == {"again": "finished", "enough": "failed", "needs": "blocked"}
    assert [a.cause for a in record(run, "again").attempts] == ["timeout", ""]
    assert record(run, "enough").reason == "ran into its time limit 1 times (max_timeouts is 0)"

    assert at_rest(cluster, chained).succeeded
    attempts = record(chained, "long").attempts
    assert [a.cause for a in attempts] == ["timeout", ""]
    assert attempts[0].job_id != attempts[1].job_id


def test_requeueing_and_signalling_by_hand(cluster: Cluster, tmp_path: Path) -> None:
    run, door = tmp_path / "run", tmp_path / "door"
    submit(
        run,
        waiting_stage(door, "requeued"),
        waiting_stage(door, "signalled"),
        Stage("needs", work.write, depends_on=("requeued", "signalled")),
    )
    for name, words in {
        "requeued": ("scontrol", "requeue"),
        "signalled": ("scancel", "--signal=USR2"),
    }.items():
        wait_for_file(begun(run, name))
        cluster.command(*words, record(run, name).job_ids[0])
        wait_for_file(saved(run, name))
    door.touch()
    now = at_rest(cluster, run)
    assert now.succeeded, unfinished(now)
    assert [a.cause for a in record(run, "requeued").attempts] == ["requeue", ""]
    assert [a.cause for a in record(run, "signalled").attempts] == ["signal", ""]
    assert len(record(run, "requeued").job_ids) == 1


def test_cancel_lets_jobs_save_and_retry_resumes_them(cluster: Cluster, tmp_path: Path) -> None:
    run, door = tmp_path / "run", tmp_path / "door"
    submit(run, waiting_stage(door), Stage("needs", work.write, depends_on=("train",)))
    wait_for_file(begun(run))
    assert cancel(run) == ["train", "needs"]
    assert saved(run).exists()
    assert not cluster.command("squeue", "-h").strip()
    now = status(run)
    assert states(now) == {"train": "cancelled", "needs": "blocked"}
    door.touch()
    assert retry(run).succeeded
    now = at_rest(cluster, run)
    assert now.succeeded and [s.attempts for s in now.stages] == [2, 1]


def test_a_job_cancelled_behind_our_back_is_not_requeued(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    submit(run, waiting_stage(tmp_path / "door"), Stage("needs", work.write, depends_on=("train",)))
    wait_for_file(begun(run))
    cluster.command("scancel", record(run).job_ids[0])
    now = at_rest(cluster, run)
    assert states(now) == {"train": "cancelled", "needs": "blocked"}
    assert saved(run).exists()


def test_a_job_that_vanishes_without_a_word_is_started_again(bare_cluster: Cluster, tmp_path: Path) -> None:
    """As when a node fails: nothing is saved or written down, and SLURM requeues the job."""
    run, door = tmp_path / "run", tmp_path / "door"
    submit(run, Stage("train", work.wait_deaf, {"path": str(door)}))
    wait_for_file(begun(run))
    pid = int(begun(run).read_text())
    bare_cluster.command("scontrol", "requeue", record(run).job_ids[0])
    wait_until(lambda: process_start(pid) == 0, "the process to be killed")
    door.touch()
    now = at_rest(bare_cluster, run)
    assert now.succeeded, unfinished(now)
    assert [(a.state, a.cause) for a in record(run).attempts] == [("interrupted", "killed"), ("finished", "")]
