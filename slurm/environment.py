"""What a submission came from: interpreter, libraries, code, and environment variables without secrets."""

import getpass
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carryover.slurm.snapshot import git_revision

# Only variables known to bear on results are written; nobody can list all names that hold secrets.
_RECORDED = re.compile(
    r"(CUDA|CUBLAS|CUDNN|NCCL|GLOO|OMP|MKL|KMP|OPENBLAS|TORCH|PYTORCH|XLA|PYTHON|CONDA|LD|SLURM|SBATCH|DETECTRON2)_\w+"
    r"|PATH|PYTHONPATH|PYTHONHASHSEED|PYTHONOPTIMIZE|VIRTUAL_ENV|LANG|LC_ALL|TZ|TMPDIR|LD_PRELOAD"
)
_SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|PWD|CREDENTIAL|AUTH|PRIVATE|COOKIE|SESSION|JWT|(?:^|_)KEY(?:$|_)|API", re.I
)
_URL_WITH_PASSWORD = re.compile(r"://[^/\s:@]+:[^/\s@]+@")


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
        if _RECORDED.fullmatch(name) and not _SECRET.search(name) and not _URL_WITH_PASSWORD.search(value)
    }


def _libraries() -> set[tuple[str, str]]:
    found = importlib.metadata.distributions()
    return {(d.metadata["Name"], d.version) for d in found if d.metadata["Name"]}
