"""The slurm executor submits a graph once, whole or not at all, and writes down what it submitted."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from carryover.slurm import (
    Event,
    Graph,
    GraphResult,
    InlineExecutor,
    Ledger,
    Output,
    RequestError,
    Resources,
    RunError,
    Stage,
    run_graph,
    scheduler,
    submission,
)
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.job import StageJob
from carryover.slurm.preview import preview
from carryover.slurm.resources import Cluster
from carryover.slurm.sbatch import git_revision
from carryover.slurm.status import status
from carryover.slurm.submission import OpenSubmission, submissions
from tests.slurm import work
from tests.slurm.fake_slurm import FakeSlurm

TRAIN = Stage(
    "pretrain", work.write, resources=Resources(nodes=4, gpus_per_node=8, tasks_per_node=8, time_min=600)
)
CONVERT = Stage("convert", work.copy, {"source": Output("pretrain", "result.txt")})
EVALUATE = [
    Stage(f"evaluate/seed{i}", work.copy, {"source": Output("convert", "copy.txt"), "seed": i})
    for i in range(5)
]
REPORT = Stage("report", work.collect, {"directories": []}, after=tuple(s.name for s in EVALUATE))
GRAPH = Graph([TRAIN, CONVERT, *EVALUATE, REPORT])
CLUSTER = Cluster(defaults=Resources(partition="gpu", mem_gb=1.5), array_parallelism=2)


def submit(
    run_dir: Path, graph: Graph = GRAPH, cluster: Cluster = CLUSTER
) -> tuple[GraphResult, list[Event]]:
    events: list[Event] = []
    return run_graph(graph, SlurmExecutor(cluster), run_dir, on_event=events.append), events


def options(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {key: value.strip("'") for key, _, value in (line.partition("=") for line in lines)}


def test_every_stage_is_submitted_after_what_it_waits_for(tmp_path: Path, fake: FakeSlurm) -> None:
    result, events = submit(tmp_path / "run")
    assert result.succeeded
    assert [o.state for o in result.stages.values()] == ["submitted"] * 8
    assert [options(s).get("dependency") for s in fake.scripts] == [
        None,
        "afterok:101",
        "afterok:102",
        "afterany:103",
    ]
    assert [options(s).get("kill-on-invalid-dep") for s in fake.scripts] == [None, "yes", "yes", "yes"]
    assert events[0].reason == "job 101, not run before"


def test_seeds_share_an_array_with_a_limit(tmp_path: Path, fake: FakeSlurm) -> None:
    result, _ = submit(tmp_path / "run")
    assert options(fake.scripts[2])["array"] == "0-4%2"
    assert options(fake.scripts[2])["job-name"] == "run:evaluate/seed"
    assert result.stages["evaluate/seed3"].reason.startswith("job 103_3,")


def test_resources_reach_sbatch_over_the_cluster_defaults(tmp_path: Path, fake: FakeSlurm) -> None:
    asked = Resources(
        cpus_per_task=10,
        partition="long",
        account="vision",
        qos="low",
        constraint="a100",
        signal_delay_s=300,
        sbatch={"exclusive": True, "mail-type": "FAIL"},
        setup=("module load cuda",),
    )
    submit(tmp_path / "run", Graph([TRAIN, Stage("b", work.write, resources=asked)]))
    first, second = (options(s) for s in fake.scripts)
    assert (first["nodes"], first["gpus-per-node"], first["ntasks-per-node"]) == ("4", "8", "8")
    assert (first["time"], first["mem"], first["partition"]) == ("600", "1536M", "gpu")
    assert "requeue" in first
    assert {k: second[k] for k in ("partition", "account", "qos", "constraint", "signal", "mail-type")} == {
        "partition": "long",
        "account": "vision",
        "qos": "low",
        "constraint": "a100",
        "signal": "USR2@300",
        "mail-type": "FAIL",
    }
    assert "exclusive" in second
    assert "\nmodule load cuda\n" in fake.scripts[1]
    assert "--cpus-per-task=10" in fake.scripts[1].rpartition("srun")[2]


def test_the_dry_run_shows_what_is_submitted(tmp_path: Path, fake: FakeSlurm) -> None:
    shown = preview(GRAPH, tmp_path / "run", CLUSTER)
    assert not (tmp_path / "run").exists() and not fake.calls
    submit(tmp_path / "run")
    for job, script in zip(shown.jobs, fake.scripts, strict=True):
        sent = [
            line for line in script.splitlines() if line.startswith("#SBATCH") and "--comment" not in line
        ]
        assert [line.replace("$", "10").replace("'", "") for line in job.header] == [
            s.replace("'", "") for s in sent
        ]
    assert shown.gpu_hours == 4 * 8 * 10
    assert [job.waits_for for job in shown.jobs[:3]] == [(), ("pretrain",), ("convert",)]
    assert {d.reason for d in shown.plan} == {"not run before"}


def test_submitting_again_submits_nothing_that_is_on_its_way(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path / "run")
    result, events = submit(tmp_path / "run")
    assert result.succeeded and len(fake.scripts) == 4
    assert events[0].reason == "job 101 is pending (Priority)"


def test_a_stage_that_ends_while_the_queue_is_read_is_not_submitted_again(
    tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph([Stage("a", work.write)])
    submit(tmp_path / "run", graph)
    ledger, ask = Ledger(tmp_path / "run"), scheduler.queue

    def ends_meanwhile(users: set[int]) -> dict[str, scheduler.Queued]:
        record = ledger.read("a")
        assert record is not None
        ledger.out("a").mkdir(exist_ok=True)
        ledger.write(record.changed("finished"))
        fake.set_queue({})
        return ask(users)

    monkeypatch.setattr(scheduler, "queue", ends_meanwhile)
    result, _ = submit(tmp_path / "run", graph)
    assert result.stages["a"].state == "skipped" and len(fake.scripts) == 1


@pytest.mark.parametrize("late_is_queued", [False, True])
def test_a_finished_report_is_drawn_up_again_though_its_job_has_not_left_the_queue(
    tmp_path: Path, fake: FakeSlurm, late_is_queued: bool
) -> None:
    late = Stage("late", work.write)
    graph = Graph([late, Stage("report", work.collect, {"directories": []}, after=("late",))])
    submit(tmp_path / "run", graph)
    record = Ledger(tmp_path / "run").read("report")
    assert record is not None
    # As the report's job leaves it, with "late" still missing.
    Ledger(tmp_path / "run").out("report").mkdir()
    Ledger(tmp_path / "run").write(record.changed("finished", missing=("late",)))
    queue = fake.queue if late_is_queued else {"102": fake.queue["102"]}
    fake.set_queue(queue | {"102": ["COMPLETING", "None", fake.queue["102"][2]]})

    _, events = submit(tmp_path / "run", graph)
    assert {e.stage: e.state for e in events} == {"late": "submitted", "report": "submitted"}
    assert "late had not finished when it ran" in events[-1].reason
    waited_for = "101" if late_is_queued else "103"
    assert options(fake.scripts[-1])["dependency"] == f"afterany:{waited_for}:102"


def test_what_has_left_the_queue_unfinished_is_submitted_again(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path / "run")
    kept = {job: value for job, value in fake.queue.items() if job not in ("103_1", "103_4")}
    fake.set_queue(kept)
    submit(tmp_path / "run")
    assert len(fake.scripts) == 6 and fake.cancelled == ["104"]
    assert options(fake.scripts[4])["array"] == "0-1%2"
    assert options(fake.scripts[4])["dependency"] == "afterok:102"
    assert options(fake.scripts[5])["dependency"] == "afterany:103_0:105:103_2:103_3", (
        "and so does the report"
    )


def test_a_changed_stage_is_not_submitted_beside_its_former_self(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path / "run")
    changed = Stage("pretrain", work.write, {"text": "other"}, resources=TRAIN.resources)
    with pytest.raises(
        RequestError, match=r"stage pretrain: .* still being worked on: job 101 .*; cancel it first"
    ):
        submit(tmp_path / "run", Graph([changed]))
    assert len(fake.scripts) == 4


def test_arrays_keep_to_the_cluster_limit(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path / "run", cluster=Cluster(max_array_size=2))
    assert [options(s).get("array") for s in fake.scripts] == [None, None, "0-1%2", "0-1%2", None, None]
    assert options(fake.scripts[5])["dependency"] == "afterany:103:104:105"


def test_a_chained_stage_is_queued_behind_itself(tmp_path: Path, fake: FakeSlurm) -> None:
    graph = Graph(
        [
            Stage("before", work.write),
            Stage("long", work.write, depends_on=("before",), resources=Resources(chain=3)),
            Stage("after", work.write, depends_on=("long",)),
        ]
    )
    submit(tmp_path / "run", graph)
    assert [options(s).get("dependency") for s in fake.scripts] == [
        None,
        "afterok:101",
        "afterok:101,afterany:102",
        "afterok:101,afterany:103",
        "afterok:104",
    ]
    assert submissions(Ledger(tmp_path / "run"))[0].jobs["long"] == ("102", "103", "104")


def test_what_slurm_would_refuse_is_said_before_anything_is_submitted(
    tmp_path: Path, fake: FakeSlurm
) -> None:
    fake.refuse_when_asked("partition=nope", "invalid partition specified: nope")
    bad = Stage("bad", work.write, resources=Resources(partition="nope"))
    with pytest.raises(
        RequestError, match=r"stage bad: SLURM does not accept .* invalid partition specified: nope"
    ):
        submit(tmp_path / "run", Graph([TRAIN, bad]))
    assert not fake.queue and not [call for call in fake.calls if "--test-only" in call]


def test_an_sbatch_that_gives_no_answer_submits_nothing_twice(tmp_path: Path, fake: FakeSlurm) -> None:
    """The controller may have taken the job all the same."""
    message = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    fake.take_without_answer(2, message)
    result, _ = submit(tmp_path / "run")
    assert result.succeeded and fake.cancelled == ["102"] and len(fake.queue) == 8
    fake.break_command("sbatch", message, times=1)
    assert submit(tmp_path / "other")[0].succeeded and len(fake.queue) == 16


def test_patterns_in_the_path_of_a_run_are_refused(tmp_path: Path, fake: FakeSlurm) -> None:
    with pytest.raises(RequestError, match=r"50%: SLURM interprets '%' in the names of log files"):
        submit(tmp_path / "50%")
    assert not fake.scripts
    for name in ("comment", "clusters", "array"):
        with pytest.raises(RequestError, match=f"sbatch: {name} is reserved"):
            Resources(sbatch={name: "x"})


def test_refused_half_way_all_is_taken_back(tmp_path: Path, fake: FakeSlurm) -> None:
    fake.refuse("array=", "Batch job submission failed: Job violates accounting/QOS policy")
    with pytest.raises(RunError, match=r"refused evaluate/seed: .*QOS policy; the 2 stages submitted before"):
        submit(tmp_path / "run")
    assert {"101", "102"} <= set(fake.cancelled) and not fake.queue
    (failed,) = submissions(Ledger(tmp_path / "run"))
    assert (failed.state, failed.jobs) == ("failed", {})
    assert {s.state for s in status(tmp_path / "run").stages} == {"waiting"}
    (fake.root / "refuse").unlink()
    result, _ = submit(tmp_path / "run")
    assert result.succeeded and len(fake.queue) == 8


@pytest.mark.parametrize("room_for", [0, 1, 2, 5])
def test_a_disk_that_fills_up_while_submitting_leaves_no_job_behind(
    tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch, room_for: int
) -> None:
    """Nothing is in the queue that is not written down, and the user is told."""
    write, left = OpenSubmission.update, [room_for]

    def update(held: OpenSubmission, **changes: object) -> None:
        if left[0] == 0:
            raise OSError(28, "No space left on device", str(held.path))
        left[0] -= 1
        write(held, **changes)

    monkeypatch.setattr(OpenSubmission, "update", update)
    with pytest.raises(RunError, match=r"No space left on device: .*submissions/0001\.json"):
        submit(tmp_path / "run")
    assert not fake.queue
    left[0] = 100
    assert submit(tmp_path / "run")[0].succeeded and len(fake.queue) == 8


def test_what_cannot_be_cancelled_stays_recorded(tmp_path: Path, fake: FakeSlurm) -> None:
    fake.refuse("array=", "Batch job submission failed")
    fake.break_command("scancel", "Unable to contact slurm controller")
    with pytest.raises(RunError, match="refused evaluate/seed"):
        submit(tmp_path / "run")
    assert submissions(Ledger(tmp_path / "run"))[0].jobs == {"pretrain": ("101",), "convert": ("102",)}


def test_a_machine_without_slurm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RequestError, match="sbatch not found: this machine does not belong to a SLURM cluster"
    ):
        submit(tmp_path / "run")


def test_a_controller_that_does_not_answer_stops_a_second_submission(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path / "run")
    fake.break_command("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    with pytest.raises(RunError, match=r"stage pretrain: it was submitted as job 101, .* Unable to contact"):
        submit(tmp_path / "run")
    assert len(fake.scripts) == 4


def test_a_callable_that_cannot_be_sent_to_a_job_is_named(tmp_path: Path, fake: FakeSlurm) -> None:
    handle = (tmp_path / "file").open("w")

    def holds_a_file(out: Path) -> None:
        handle.write("x")

    with (
        handle,
        pytest.raises(RequestError, match=r"stage a: .*holds_a_file cannot be sent to another process"),
    ):
        submit(tmp_path / "run", Graph([Stage("a", holds_a_file)]))
    assert not fake.scripts


def test_jobs_carry_a_callable_by_name_and_import_what_the_submitter_does(
    tmp_path: Path, fake: FakeSlurm
) -> None:
    from submitit.core.utils import DelayedSubmission

    submit(tmp_path / "run")
    job = DelayedSubmission.load(tmp_path / "run/jobs/101_submitted.pkl").function
    assert isinstance(job, StageJob)
    assert job.stage.call.target == "tests.slurm.work:write"
    root = str(Path(work.__file__).parents[2])
    exported = next(line for line in fake.scripts[0].splitlines() if "PYTHONPATH" in line)
    assert root in exported.partition("=")[2].strip("'").split(":")
    assert " -P -u -m submitit" in fake.scripts[0]


def test_jobs_of_a_snapshot_know_its_revision(tmp_path: Path, fake: FakeSlurm) -> None:
    executor = SlurmExecutor(CLUSTER, packages=("slurm",))
    run_graph(GRAPH, executor, tmp_path / "run")
    revision = git_revision(Path(scheduler.__file__).parent)
    assert f"export CARRYOVER_GIT_REVISION={shlex.quote(revision)}" in fake.scripts[0].splitlines()


def test_no_secret_is_written(tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    from carryover.slurm.sbatch import describe, without_secrets

    for name in ("WANDB_API_KEY", "HF_TOKEN", "CUDA_AUTH", "PATH_PASSWORD", "SLURM_JWT", "TORCH_SECRET_KEY"):
        monkeypatch.setenv(name, "hush-hush")
    for number, value in enumerate(
        (
            "https://user:hush-hush@mirror/",
            "https://hush-hush@mirror/",
            "https://mirror/?sig=hush-hush",
            "https://mirror/a?x=1&access_token=hush-hush",
            "ghp_hush-hush-hush",
        )
    ):
        monkeypatch.setenv(f"TORCH_MIRROR{number}", value)
    assert without_secrets(["a.root=/data", "b=https://hush-hush@mirror/", "api_key=hush-hush"]) == [
        "a.root=/data",
        "b=(not recorded)",
        "api_key=(not recorded)",
    ]
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    run_graph(GRAPH, SlurmExecutor(CLUSTER), tmp_path / "run", origin=describe(Path(__file__).parent))
    origin = submissions(Ledger(tmp_path / "run"))[0].origin
    assert origin["environment"]["NCCL_DEBUG"] == "INFO" and origin["python"] == sys.executable
    assert origin["libraries"]["submitit"]
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert written and not [path for path in written if b"hush-hush" in path.read_bytes()]


def test_other_executors_wait_for_what_slurm_has_in_flight(tmp_path: Path, fake: FakeSlurm) -> None:
    submit(tmp_path / "run")
    kept = {job: value for job, value in fake.queue.items() if job == "101"}
    fake.set_queue(kept)
    result = run_graph(GRAPH, InlineExecutor(), tmp_path / "run")
    assert not result.succeeded
    assert {o.state for name, o in result.stages.items() if name != "pretrain"} == {"waiting"}
    assert result.stages["convert"].reason == "for pretrain: job 101 is pending (Priority)"


def submitter(run_dir: Path) -> list[str]:
    program = (
        "import sys; from pathlib import Path\n"
        "from carryover.slurm import run_graph\n"
        "from carryover.slurm.cluster_executor import SlurmExecutor\n"
        "from tests.slurm.test_submitting import CLUSTER, GRAPH\n"
        f"run_graph(GRAPH, SlurmExecutor(CLUSTER), Path({str(run_dir)!r}))\n"
    )
    return [sys.executable, "-c", program]


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [1, 3])
def test_a_submitter_killed_half_way_leaves_nothing_twice(
    tmp_path: Path, fake: FakeSlurm, number: int
) -> None:
    fake.kill_submitter_at(number)
    done = subprocess.run(submitter(tmp_path / "run"), cwd=ROOT, capture_output=True)
    assert done.returncode == -9 and len(fake.scripts) == number
    (fake.root / "kill_at").unlink()
    result, _ = submit(tmp_path / "run")
    assert result.succeeded
    orphans = {1: ["101"], 3: [f"103_{i}" for i in range(5)]}[number]
    assert sorted(fake.cancelled) == orphans
    assert len(fake.queue) == 8
    jobs = [job for s in submissions(Ledger(tmp_path / "run")) for ids in s.jobs.values() for job in ids]
    assert sorted(jobs) == sorted(fake.queue)


def test_two_submitters_at_once_submit_everything_once(tmp_path: Path, fake: FakeSlurm) -> None:
    both = [
        subprocess.Popen(submitter(tmp_path / "run"), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 1])
    assert codes == [0, 0] or any("has been at work on this run since" in text for text in said)
    assert len(fake.scripts) == 4 and len(fake.queue) == 8


def test_a_submitter_that_comes_between_looking_and_taking_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.create(tmp_path / "run")
    looked = submission.submissions

    def then_another_comes(ledger: Ledger, **asked: bool) -> list[submission.Submission]:
        found = looked(ledger, **asked)
        monkeypatch.setattr(submission, "submissions", looked)
        other = subprocess.Popen(holding(ledger.run_dir), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        others.append(other)
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        return found

    others: list[subprocess.Popen[str]] = []
    monkeypatch.setattr(submission, "submissions", then_another_comes)
    try:
        with (
            pytest.raises(RunError, match="has been at work on this run since"),
            submission.submission(ledger, "inline"),
        ):
            pass
    finally:
        for other in others:
            other.kill()
            other.communicate()


def holding(run_dir: Path) -> list[str]:
    program = (
        "import time; from pathlib import Path\n"
        "from carryover.slurm.ledger import Ledger\n"
        "from carryover.slurm.submission import submission\n"
        f"with submission(Ledger(Path({str(run_dir)!r})), 'inline'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    return [sys.executable, "-c", program]
