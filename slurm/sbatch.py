"""Inputs of each job: its batch script, its environment, a copy of the code."""

import getpass
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from carryover.configs.files import temporary_name, write_atomic
from carryover.slurm.batches import Batch
from carryover.slurm.errors import RequestError
from carryover.slurm.ledger import Ledger
from carryover.slurm.resources import Cluster

log = logging.getLogger(__name__)

_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


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


# Only variables known to bear on results are written; no list of names of secrets would be complete.
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
    batch: Batch,
    cluster: Cluster,
    run_name: str,
    token: str,
    dependency: str | None,
    setup: Sequence[str],
    begin: str | None = None,
) -> dict[str, Any]:
    """Return a batch's parameters for submitit's SlurmExecutor.

    With `begin`, a time, it may wait for others that it is told of before.
    """
    asked = batch.resources
    further: dict[str, Any] = {"requeue": True} if cluster.requeue else {"no-requeue": True}
    if dependency is not None or begin is not None:
        further["kill-on-invalid-dep"] = "yes"
    if begin is not None:
        further["begin"] = begin
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
        "setup": [*setup, *asked.setup, *LAST_BEFORE],
        "teardown": list(AFTER_ALL),
        # submitit's default wckey is rejected where such keys are tracked.
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

LAST_BEFORE = (
    # What the setup lines start is spared; from here on the script notes that a TERM has reached it too.
    "trap 'CARRYOVER_TERMED=1' TERM",
)
"""Lines of every batch script after the setup lines, before srun."""

AFTER_ALL = (
    "code=$?",
    # A signal that comes again must not end what is left to be done here.
    "trap '' USR2 TERM",
    # srun gives up where TERM reaches it, and kills its tasks at once; a task may also be killed before it
    # ignores signals. Where nobody has ended the job, it goes back into the queue if its stage has not begun,
    # or if that TERM kept it from ending by itself.
    "case $code in 9|12|15|137|140|143)",
    '  if [ -n "$CARRYOVER_BEGUN" ] && ! grep -qs ended "$CARRYOVER_BEGUN" \\',
    '    && { [ ! -s "$CARRYOVER_BEGUN" ] || [ -n "$CARRYOVER_TERMED" ]; } \\',
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
