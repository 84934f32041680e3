"""Running SLURM's commands: in an environment that steers none of them, and again where one fails."""

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from carryover.slurm.errors import RunError

_TIMEOUT_SECONDS = 60
_PAUSES = (1.0, 2.0)
_LONG_SECONDS = 8.0
_FINAL_WORDS = re.compile(r"[Ii]nvalid|not found|disabled|denied|already finished")

# What a shell, or the job that this process runs in, may have set to steer them.
_STEERING = re.compile(r"(SLURM|SBATCH|SQUEUE|SACCT|SCANCEL|SCONTROL|SRUN|SALLOC|SINFO|SUBMITIT)_\w+")
# Times as they are read here, and no "..." in lists of array elements.
_FORMATS = {"SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0"}
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


def cleaned(variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what changes the meaning of SLURM's commands behind our back.

    A filter for squeue, an option for sbatch, another cluster, the shape of the job that this process runs
    in; where SLURM's configuration and credentials lie stays.
    """
    return {k: v for k, v in variables.items() if k in _KEPT or not _STEERING.fullmatch(k)}


def overriding(variables: Mapping[str, str]) -> list[str]:
    """Return the variables by which a shell would override what sbatch is told."""
    return sorted(name for name in variables if name.startswith("SBATCH_"))


@contextmanager
def cleaned_environment() -> Iterator[None]:
    """Clean this process's own environment while a library calls SLURM's commands."""
    before = dict(os.environ)
    for name in before.keys() - cleaned(before).keys():
        del os.environ[name]
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.setdefault(name, value)


def run(
    *words: str, pauses: Sequence[float] | None = None, entered: str = "", timeout: float = _TIMEOUT_SECONDS
) -> str:
    """Run one of SLURM's commands; one that fails is run again, unless it says that it always will.

    `entered` is what it reads from its standard input.
    """
    for pause in (*(_PAUSES if pauses is None else pauses), None):
        start = time.monotonic()
        try:
            done = subprocess.run(
                words,
                capture_output=True,
                text=True,
                errors="replace",
                input=entered,
                timeout=timeout,
                env={**cleaned(os.environ), **_FORMATS},
            )
        except FileNotFoundError:
            message = f"{words[0]} not found: this machine does not belong to a SLURM cluster"
            raise RunError(message) from None
        except subprocess.TimeoutExpired:
            raise RunError(f"{words[0]} did not answer within {timeout:.0f} s") from None
        if done.returncode == 0:
            return done.stdout
        # One that took long to fail has tried for as long as SLURM's own patience lasts.
        if pause is None or time.monotonic() - start > _LONG_SECONDS or _FINAL_WORDS.search(done.stderr):
            break
        time.sleep(pause)
    said = [line for line in done.stderr.splitlines() if line.strip()]
    raise RunError(f"{words[0]}: {'; '.join(said[-2:]) or f'exit status {done.returncode}'}")
