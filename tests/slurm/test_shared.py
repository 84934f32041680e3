"""Many groups of stages take few calls: shared arrays, and one scontrol that tells who waits for whom."""

import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from carryover.slurm import Graph, Ledger, RequestError, Resources, RunError, Stage, run_graph
from carryover.slurm.cluster_executor import SlurmExecutor
from carryover.slurm.preview import preview
from carryover.slurm.resources import Cluster
from carryover.slurm.status import status
from carryover.slurm.submission import submissions
from tests.slurm import work
from tests.slurm.fake_slurm import FakeSlurm

CLUSTER = Cluster(defaults=Resources(time_min=30), array_parallelism=7)


def graph(pretrainings: int = 6, seeds: int = 3, chain: int = 1) -> Graph:
    """Pretrainings, each with evaluations and one with a longer time limit, and a report of them all."""
    train, evaluate = Resources(gpus_per_node=8, time_min=60, chain=chain), Resources(gpus_per_node=1)
    long = Resources(gpus_per_node=1, time_min=90)
    stages = [Stage(f"pretrain/{i}", work.write, resources=train) for i in range(pretrainings)]
    for i in range(pretrainings):
        needs = (f"pretrain/{i}",)
        stages += [
            Stage(f"evaluate/{i}/seed{seed}", work.write, depends_on=needs, resources=evaluate)
            for seed in range(seeds)
        ]
        stages.append(Stage(f"evaluate/{i}/long", work.write, depends_on=needs, resources=long))
    return Graph([*stages, Stage("report", work.write, after=tuple(s.name for s in stages[pretrainings:]))])


def submit(run: Path, of: Graph, cluster: Cluster = CLUSTER) -> bool:
    return run_graph(of, SlurmExecutor(cluster), run).succeeded


def waits(fake: FakeSlurm, jobs: dict[str, tuple[str, ...]]) -> dict[str, tuple[set[str], str]]:
    """Return, of every job, those it was told to wait for (arrays by element), and its time limit."""
    every = [job for ids in jobs.values() for job in ids]
    told: dict[str, tuple[set[str], str]] = {}

    def elements(name: str) -> list[str]:
        base, _, inside = name.partition("_")
        if not inside:
            return [job for job in every if job.partition("_")[0] == base]
        first, _, last = inside.strip("[]").partition("-")
        return [f"{base}_{i}" for i in range(int(first), int(last or first) + 1)]

    for line in fake.updates:
        words = dict(word.partition("=")[::2] for word in line.split()[1:])
        assert words["StartTime"] == "now"
        clauses = [clause for clause in words.get("Dependency", "").split(",") if clause]
        needed = {
            f"{kind} {job}"
            for kind, *names in (clause.split(":") for clause in clauses)
            for name in names
            for job in elements(name)
        }
        for job in elements(words["JobId"]):
            assert job not in told, f"{job} is told twice"
            told[job] = (needed, words.get("TimeLimit", ""))
    return told


def test_every_stage_waits_for_its_own_and_the_calls_are_few(tmp_path: Path, fake: FakeSlurm) -> None:
    assert submit(tmp_path / "run", graph())
    jobs = submissions(Ledger(tmp_path / "run"))[0].jobs
    assert [call.split()[0] for call in fake.calls] == ["sbatch", "sbatch", "sbatch", "scontrol"]
    assert all("#SBATCH --begin=now+365days" in s and "kill-on-invalid-dep=yes" in s for s in fake.scripts)
    told = waits(fake, jobs)
    for name, (job,) in jobs.items():
        needed, limit = told[job]
        if name.startswith("pretrain"):
            assert (needed, limit) == (set(), "")
        elif name == "report":
            assert needed == {f"afterany {ids[0]}" for n, ids in jobs.items() if n.startswith("evaluate")}
        else:
            assert needed == {f"afterok {jobs['pretrain/' + name.split('/')[1]][0]}"}
            assert limit == ("" if name.endswith("long") else "30")
    times = [re.search(r"--time=(\d+)", s)[1] for s in fake.scripts]  # type: ignore[index]
    assert sorted(times) == ["30", "60", "90"], "an array asks for the longest of its stages' limits"
    assert {reason for _, reason, _ in fake.queue.values()} == {"Dependency", "Priority"}


def test_what_is_waited_for_is_let_go_last(tmp_path: Path, fake: FakeSlurm) -> None:
    """Else a stage could fail before those that need it had been told so."""
    submit(tmp_path / "run", graph())
    jobs = submissions(Ledger(tmp_path / "run"))[0].jobs
    of = {"pretrain": jobs["pretrain/0"], "evaluate": jobs["evaluate/0/long"], "report": jobs["report"]}
    bases = {ids[0].partition("_")[0]: name for name, ids in of.items()}
    order = [bases[re.search(r"JobId=(\d+)", line)[1]] for line in fake.updates]  # type: ignore[index]
    assert list(dict.fromkeys(order)) == ["report", "evaluate", "pretrain"]


def test_a_few_batches_are_submitted_with_their_dependencies(tmp_path: Path, fake: FakeSlurm) -> None:
    assert submit(tmp_path / "run", graph(pretrainings=1))
    assert len(fake.scripts) == 4 and not fake.updates
    assert submit(tmp_path / "own time", graph_with(sbatch={"deadline": "2030-01-01"}))
    assert not fake.updates, "a deadline before the begin time would be refused"


def graph_with(sbatch: dict[str, str]) -> Graph:
    roots = [Stage(f"a{i}", work.write, resources=Resources(sbatch=sbatch)) for i in range(7)]
    return Graph([*roots, *(Stage(f"b{i}", work.write, depends_on=(f"a{i}",)) for i in range(7))])


def test_the_links_of_chains_share_arrays_too(tmp_path: Path, fake: FakeSlurm) -> None:
    assert submit(tmp_path / "run", graph(chain=3))
    jobs = submissions(Ledger(tmp_path / "run"))[0].jobs
    assert len(fake.scripts) == 5
    told = waits(fake, jobs)
    first, second, third = jobs["pretrain/2"]
    assert [told[job][0] for job in (first, second, third)] == [
        set(),
        {f"afterany {first}"},
        {f"afterany {second}"},
    ]
    assert told[jobs["evaluate/2/long"][0]][0] == {f"afterok {third}"}


def test_an_array_is_cut_where_the_cluster_allows_no_more(tmp_path: Path, fake: FakeSlurm) -> None:
    assert submit(tmp_path / "run", graph(), Cluster(max_array_size=10))
    jobs = submissions(Ledger(tmp_path / "run"))[0].jobs
    told = waits(fake, jobs)
    assert len(fake.scripts) == 5 and len(told) == len(jobs) == 31
    assert told[jobs["evaluate/5/seed2"][0]][0] == {f"afterok {jobs['pretrain/5'][0]}"}


def test_who_waits_for_very_many_names_arrays_whole(tmp_path: Path, fake: FakeSlurm) -> None:
    """Also where what those need for themselves is in the same array, as on a machine without GPUs."""
    roots = [Stage(f"root/{i}", work.write) for i in range(10)]
    leaves = [Stage(f"leaf/{i}", work.write, depends_on=(f"root/{i % 10}",)) for i in range(60)]
    assert submit(
        tmp_path / "run", Graph([*roots, *leaves, Stage("report", work.write, after=names(leaves))])
    )
    assert len(fake.scripts) == 2
    first = re.fullmatch(r"update JobId=(\d+) Dependency=afterany:(\d+) StartTime=now", fake.updates[0])
    assert first and {*first.groups()} == {"101", "102"}


def names(stages: list[Stage]) -> tuple[str, ...]:
    return tuple(stage.name for stage in stages)


def test_the_dry_run_shows_arrays_and_what_they_are_told(tmp_path: Path, fake: FakeSlurm) -> None:
    shown = preview(graph(chain=2), tmp_path / "run", CLUSTER)
    assert not fake.calls
    submit(tmp_path / "run", graph(chain=2))
    assert shown.gpu_hours == 6 * (8 * 1 + 3 * 0.5 + 1.5)
    told = sorted(f"update {request}" for job in shown.jobs for request in job.updates)
    assert len(told) == len(fake.updates) and sum(job.links for job in shown.jobs) == len(fake.scripts)
    headers = {line for job in shown.jobs for line in job.header}
    for script in fake.scripts:
        sent = [s for s in script.splitlines() if s.startswith("#SBATCH") and "--comment" not in s]
        assert headers.issuperset(sent)


def test_a_request_that_fails_is_repeated_for_those_that_do_not_know(tmp_path: Path, fake: FakeSlurm) -> None:
    fake.refuse_updates("Dependency=afterok", "Socket timed out on send/recv operation", times=1)
    assert submit(tmp_path / "run", graph())
    counts = Counter(fake.updates)
    assert sorted(counts.values()) == [1] * (len(counts) - 1) + [2]
    assert fake.updates[-1] == next(line for line in fake.updates if "afterok" in line)


def test_where_users_may_not_update_jobs_batches_are_submitted(tmp_path: Path, fake: FakeSlurm) -> None:
    fake.refuse_updates("", "Access/permission denied for job 101")
    assert submit(tmp_path / "run", graph())
    jobs = submissions(Ledger(tmp_path / "run"))[0].jobs
    assert len(fake.queue) == len(jobs) == 31, "nothing is in the queue twice"
    assert {reason for _, reason, _ in fake.queue.values()} == {"Dependency", "Priority"}
    assert not any("--begin" in script for script in fake.scripts[3:])


def test_an_scontrol_that_says_nothing_has_done_nothing(tmp_path: Path, fake: FakeSlurm) -> None:
    fake.silence("scontrol")
    assert submit(tmp_path / "run", graph())
    assert len(fake.queue) == 31 and "BeginTime" not in {reason for _, reason, _ in fake.queue.values()}


def test_some_that_were_told_and_some_that_could_not_be_are_all_taken_back(
    tmp_path: Path, fake: FakeSlurm
) -> None:
    fake.refuse_updates("Dependency=afterany", "Slurm temporarily unable to accept job")
    with pytest.raises(RunError, match="could not be told what they wait for"):
        submit(tmp_path / "run", graph())
    assert not fake.queue
    assert submissions(Ledger(tmp_path / "run"))[0].state == "failed"


def test_what_slurm_refuses_is_said_as_of_batches(tmp_path: Path, fake: FakeSlurm) -> None:
    fake.refuse_when_asked("partition=nope", "invalid partition specified: nope")
    bad = Stage("bad", work.write, resources=Resources(partition="nope"))
    with pytest.raises(RequestError, match="stage bad: SLURM does not accept"):
        submit(tmp_path / "run", Graph([*graph(), bad]))
    assert not fake.queue


@pytest.mark.parametrize("moment", ["between two arrays", "after all that"])
def test_a_submitter_killed_on_its_way_leaves_nothing_that_begins(
    tmp_path: Path, fake: FakeSlurm, moment: str
) -> None:
    """What it left is cancelled by the next, which submits everything once."""
    program = (
        "from pathlib import Path\n"
        "from tests.slurm.test_shared import graph, submit\n"
        f"submit(Path({str(tmp_path / 'run')!r}), graph())\n"
    )
    if moment == "after all that":
        fake.kill_submitter_at_update()
    else:
        fake.kill_submitter_at(2)
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    for file in ("kill_at", "kill_at_update"):
        (fake.root / file).unlink(missing_ok=True)
    left = fake.queue
    assert left
    if moment == "between two arrays":
        assert {reason for _, reason, _ in left.values()} == {"BeginTime"}
    now = status(tmp_path / "run")
    assert now.ended_badly and not now.in_flight, "nobody is going to run what was left"
    assert submit(tmp_path / "run", graph())
    assert set(left) <= set(fake.cancelled)
    jobs = submissions(Ledger(tmp_path / "run"))[-1].jobs
    assert sorted(fake.queue) == sorted(job for ids in jobs.values() for job in ids) and len(jobs) == 31
