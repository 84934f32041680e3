"""Jobs: stages grouped into arrays, and what each job is given: script, environment, a copy of the code."""

import getpass
import hashlib
import importlib.metadata
import importlib.util
import itertools
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from carryover.configs.files import temporary_name, write_atomic
from carryover.slurm.errors import RequestError
from carryover.slurm.ledger import Ledger
from carryover.slurm.plan import Action, Decision
from carryover.slurm.resources import Cluster, Resources
from carryover.slurm.stage import Stage

log = logging.getLogger(__name__)

_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


@dataclass(frozen=True)
class Batch:
    """Stages submitted with one sbatch, as a job or a job array; `needs` and `follows` are not done yet.

    `behind` are jobs of former submissions of these stages that are on their way out of the queue.
    """

    stages: tuple[Stage, ...]
    resources: Resources
    needs: tuple[str, ...]
    follows: tuple[str, ...]
    behind: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the stages' names have in common, or the first's and how many more there are."""
        first, last = min(s.name for s in self.stages), max(s.name for s in self.stages)
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
        common = re.sub(r"[^A-Za-z0-9]+$", "", "".join(c for c, _ in alike))
        return common or f"{self.stages[0].name}+{len(self.stages) - 1}"

    @property
    def gpu_hours(self) -> float:
        """GPU-hours asked for, if every job of the batch took its whole time limit once."""
        return len(self.stages) * self.resources.gpu_hours


def make_batches(
    plan: Sequence[Decision],
    defaults: Resources,
    max_array_size: int,
    behind: Mapping[str, tuple[str, ...]] | None = None,
) -> list[Batch]:
    """Group a plan's stages into batches, in an order in which each follows all it waits for.

    Stages share a batch when they ask for the same resources and wait for the same stages: a group that
    waited for the union of several stages' dependencies would start late, and fail with any of them. A
    chained stage is a batch of its own. `behind` gives stages' former jobs that are leaving the queue.
    """
    pending = {d.stage.name for d in plan if d.action.works or d.action is Action.IN_FLIGHT}
    groups: dict[object, Batch] = {}
    for decision in plan:
        if not decision.action.works:
            continue
        stage = decision.stage
        resources = stage.resources.over(defaults)
        needs = tuple(sorted(pending.intersection(stage.upstream)))
        follows = tuple(sorted(pending.intersection(stage.after).difference(needs)))
        alone = stage.name if resources.chain > 1 else ""
        former = (behind or {}).get(stage.name, ())
        key = (repr(resources), needs, follows, alone, former)
        own = replace(stage, resources=resources)
        group = groups.get(key)
        groups[key] = (
            Batch((own,), resources, needs, follows, former)
            if group is None
            else replace(group, stages=(*group.stages, own))
        )
    return [part for group in _in_order(groups.values()) for part in _parts(group, max_array_size)]


def dependency(
    batch: Batch, jobs: Mapping[str, Sequence[str]], arrays: Mapping[str, int] | None = None
) -> str | None:
    """Return sbatch's --dependency for a batch, given the jobs of what it waits for.

    A stage's last job is the one that counts. An array of which every element is needed is named whole, if
    `arrays` holds its size: of one submitted earlier, elements may have failed that nobody waits for now.
    """
    needs = _whole_arrays([jobs[name][-1] for name in batch.needs], arrays or {})
    follows = _whole_arrays([jobs[name][-1] for name in batch.follows], arrays or {})
    clauses = {"afterok": needs, "afterany": [*follows, *batch.behind]}
    return ",".join(":".join([kind, *ids]) for kind, ids in clauses.items() if ids) or None


def arrays_of(given: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the arrays among the jobs of one submission, each with the number of its elements."""
    return dict(Counter(job.partition("_")[0] for jobs in given.values() for job in jobs if "_" in job))


def _in_order(groups: Iterable[Batch]) -> list[Batch]:
    waiting = list(groups)
    unplaced = Counter(stage.name for group in waiting for stage in group.stages)
    ordered: list[Batch] = []
    while waiting:
        ready = [g for g in waiting if not any(unplaced[n] for n in (*g.needs, *g.follows))]
        ordered.extend(ready)
        placed = {id(g) for g in ready}
        waiting = [g for g in waiting if id(g) not in placed]
        for group in ready:
            unplaced.subtract(stage.name for stage in group.stages)
    return ordered


def _parts(batch: Batch, size: int) -> list[Batch]:
    starts = range(0, len(batch.stages), size)
    return [replace(batch, stages=batch.stages[start : start + size]) for start in starts]


def _whole_arrays(ids: Sequence[str], sizes: Mapping[str, int]) -> list[str]:
    asked = Counter(job.partition("_")[0] for job in ids if "_" in job)
    whole = {base for base, count in asked.items() if count == sizes.get(base)}
    return list(dict.fromkeys(b if (b := job.partition("_")[0]) in whole else job for job in ids))


def take_snapshot(ledger: Ledger, packages: Sequence[str]) -> Path:
    """Copy packages into ``code/<hash>`` of the run directory, once for the same contents; return the copy.

    The diff against the last git revision is kept beside it, as ``code/<hash>.diff``.

    Raises
    ------
    RequestError
        There is no such package, or it is not a directory of files.
    """
    sources = {name: package_directory(name) for name in packages}
    digest = _digest(sources)
    target = ledger.run_dir / "code" / digest
    if target.exists():
        if _digest({name: target / name for name in sources}) == digest:
            return target
        # Jobs import it: it must be what it is called.
        log.warning("%s is not as it was copied; copying it again", target)
        shutil.rmtree(target)
    temporary = temporary_name(target)
    shutil.rmtree(temporary, ignore_errors=True)
    for name, source in sources.items():
        shutil.copytree(source, temporary / name, ignore=_IGNORED)
    write_atomic(target.with_suffix(".diff"), _git_diff(list(sources.values())).encode())
    temporary.rename(target)
    return target


def git_revision(*directories: Path) -> str:
    """Return the git revision of directories, "+changes" behind it if their files differ; "" outside git."""
    revision = _git(directories[0], "rev-parse", "HEAD").strip()
    places = [place for directory in directories for place in _places(directory)]
    changed = any(_git(d, "status", "--porcelain", "--", str(d)).strip() for d in places)
    return revision + ("+changes" if revision and changed else "")


def package_directory(package: str) -> Path:
    """Return where a package lies; raises RequestError when it is not a directory of files."""
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
        raise RequestError(f"there is no package {package!r} to take a snapshot of")
    return Path(places[0])


def _places(directory: Path) -> list[Path]:
    """Return where a package's files lie: the directory itself, and those that it links to."""
    return [
        directory.resolve(),
        *(p.resolve() for p in sorted(directory.iterdir()) if p.is_symlink() and p.is_dir()),
    ]


def _files(directory: Path) -> Iterator[Path]:
    found = (Path(at, name) for at, _, names in os.walk(directory, followlinks=True) for name in names)
    for path in sorted(found):
        parts = path.relative_to(directory).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if path.is_file() and not hidden and path.suffix != ".pyc":
            yield path


def _digest(sources: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, source in sorted(sources.items()):
        for path in _files(source):
            digest.update(f"{name}/{path.relative_to(source)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _git_diff(directories: list[Path]) -> str:
    places = [place for directory in directories for place in _places(directory)]
    return "".join(_git(d, "diff", "HEAD", "--", str(d)) for d in places)


def _git(directory: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


# Only variables known to bear on results are written; nobody can list all names that hold secrets.
_RECORDED = re.compile(
    r"(CUDA|CUBLAS|CUDNN|NCCL|GLOO|OMP|MKL|KMP|OPENBLAS|TORCH|PYTORCH|XLA|PYTHON|CONDA|LD|SLURM|SBATCH|DETECTRON2)_\w+"
    r"|PATH|PYTHONPATH|PYTHONHASHSEED|PYTHONOPTIMIZE|VIRTUAL_ENV|LANG|LC_ALL|TZ|TMPDIR|LD_PRELOAD"
)
_SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|PWD|CREDENTIAL|AUTH|PRIVATE|COOKIE|SESSION|JWT|(?:^|_)KEY(?:$|_)|API", re.I
)
# User, token or password before a host; a signed address; the shapes in which services hand out tokens.
_SECRET_VALUE = re.compile(
    r"://[^/\s@]+@"
    r"|[?&](?:[\w-]*token|key|sig|signature|password|[\w-]*secret)="
    r"|\b(?:gh[opsur]_|github_pat_|glpat-|hf_|sk-|xox[abp]-|AKIA|eyJ)[\w-]{8,}",
    re.I,
)


def describe(code: Path) -> dict[str, Any]:
    """Return, as plain data, what a later reader needs to know of this process; `code` is in its git tree."""
    return {
        "user": getpass.getuser(),
        "directory": str(Path.cwd()),
        "python": sys.executable,
        "python_version": platform.python_version(),
        "libraries": dict(sorted(_libraries())),
        "git_revision": git_revision(code),
        "environment": recorded_environment(os.environ),
    }


def recorded_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that bear on results; none whose name or value looks like a secret."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if _RECORDED.fullmatch(name) and not _SECRET.search(name) and not _SECRET_VALUE.search(value)
    }


def without_secrets(words: Iterable[str]) -> list[str]:
    """Return what was typed (``key=value``), with values that hold a secret left out."""
    return [_without_secret(word) for word in words]


def _without_secret(word: str) -> str:
    key, equals, value = word.partition("=")
    secret = _SECRET.search(key) or _SECRET_VALUE.search(value)
    return f"{key}=(not recorded)" if equals and secret else word


def _libraries() -> set[tuple[str, str]]:
    found = importlib.metadata.distributions()
    return {(d.metadata["Name"], d.version) for d in found if d.metadata["Name"]}


def parameters(
    batch: Batch, cluster: Cluster, run_name: str, token: str, dependency: str | None, setup: Sequence[str]
) -> dict[str, Any]:
    """Return a batch's parameters for submitit's SlurmExecutor."""
    asked = batch.resources
    further: dict[str, Any] = {"requeue": True} if cluster.requeue else {"no-requeue": True}
    if dependency is not None:
        further["kill-on-invalid-dep"] = "yes"
    srun = ["--kill-on-bad-exit=1"]
    if asked.cpus_per_task is not None:
        # Since SLURM 22.05 srun no longer takes this from the batch job.
        srun.append(f"--cpus-per-task={asked.cpus_per_task}")
    chosen = {
        "job_name": f"{run_name}:{batch.name}",
        "comment": token,
        "time": asked.time_limit_min,
        "nodes": asked.nodes,
        "ntasks_per_node": asked.tasks_per_node,
        "cpus_per_task": asked.cpus_per_task,
        "gpus_per_node": asked.gpus_per_node or None,
        "mem": None if asked.mem_gb is None else f"{round(asked.mem_gb * 1024)}M",
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "constraint": asked.constraint,
        "dependency": dependency,
        "array_parallelism": cluster.array_parallelism,
        "signal_delay_s": asked.signal_delay,
        "srun_args": srun,
        "setup": [*setup, *asked.setup],
        "teardown": list(AFTER_ALL),
        # submitit's default wckey is refused where such keys are tracked.
        "wckey": None,
        "additional_parameters": {**further, **asked.sbatch},
    }
    kept_even_if_none = ("wckey",)
    return {key: value for key, value in chosen.items() if value is not None or key in kept_even_if_none}


def script(batch: Batch, chosen: dict[str, Any], directory: Path, command: str) -> str:
    """Return the text of the batch script, as submitit writes it."""
    count = len(batch.stages) if len(batch.stages) > 1 else None
    text: str = _make_sbatch_string(command=command, folder=directory, map_count=count, **chosen)
    return text


def folder(ledger: Ledger) -> Path:
    """Return where submitit keeps its scripts, calls and logs of a run; only the jobs read the calls."""
    return ledger.run_dir / "jobs"


def header(text: str) -> list[str]:
    """Return the #SBATCH lines of a batch script."""
    return [line for line in text.splitlines() if line.startswith("#SBATCH")]


def interpreter() -> str:
    """Return the shell command of this interpreter.

    -P keeps the directory of submission out of the import path, where a working tree would come before the
    snapshot.
    """
    return f"{shlex.quote(sys.executable)} -P"


BEFORE_ALL = (
    # Until a stage can save its state, signals are passed over: they would kill the job, which SLURM takes
    # for a failure. Whatever sent one either asks again (time limit, preemption) or kills in the end.
    "trap '' USR2 TERM",
    # submitit would act on USR2 by itself.
    "export SUBMITIT_PREEMPT_SIGNAL=WINCH",
    "export CARRYOVER_JOB_UPTIME=$(cut -d' ' -f1 /proc/uptime)",
    "export CARRYOVER_BEGUN=$(mktemp)",
)
"""First lines of every batch script; SLURM's tasks do not inherit what the script ignores."""

AFTER_ALL = (
    "code=$?",
    # srun itself gives up where a signal reaches it, and a task may be killed before it ignores signals. A
    # job that has not begun and that nobody has ended then goes back into the queue.
    "case $code in 9|12|15|137|140|143)",
    '  if [ -n "$CARRYOVER_BEGUN" ] && [ ! -s "$CARRYOVER_BEGUN" ] \\',
    '    && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ] \\',
    '    && scontrol show job -o "$SLURM_JOB_ID" | grep -q JobState=RUNNING',
    '  then scontrol requeue "$SLURM_JOB_ID"; fi',
    "esac",
    'rm -f "$CARRYOVER_BEGUN"',
    "exit $code",
)
"""Last lines of every batch script; `code` is srun's exit status, a task's signal or status."""


def heedless_interpreter() -> str:
    """Return the shell command of this interpreter for a task that ignores signals until it can heed them."""
    heedless = "trap '' USR2 TERM; exec \"$@\""
    return f"/bin/sh -c {shlex.quote(heedless)} sh {interpreter()}"


def job_environment(ledger: Ledger, packages: Sequence[str]) -> dict[str, str]:
    """Take a snapshot of packages; return the variables by which a job imports it and knows its revision.

    A snapshot has no git directory: what runs from it reads the revision in CARRYOVER_GIT_REVISION.
    """
    code = take_snapshot(ledger, packages) if packages else None
    variables = {"PYTHONPATH": import_path(code)}
    if packages:
        variables["CARRYOVER_GIT_REVISION"] = git_revision(*map(package_directory, packages))
    return variables


def import_path(snapshot: Path | None) -> str:
    """Return the PYTHONPATH under which a job imports what this process does, the snapshot first."""
    library = tuple(os.path.realpath(p) for p in {sys.prefix, sys.base_prefix, sys.exec_prefix})
    own = [os.path.realpath(p or ".") for p in sys.path]
    added = [p for p in own if Path(p).exists() and not p.startswith(library)]
    return os.pathsep.join(dict.fromkeys([*([str(snapshot)] if snapshot else []), *added]))
