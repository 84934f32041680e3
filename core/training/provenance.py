"""Provenance of a number: code revision, library versions, hardware, host and job."""

import os
import platform
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from carryover.configs.formats import DISTRIBUTION, release
from carryover.core.processor import processor_name

if TYPE_CHECKING:
    import torch

# OpenCV goes by several names, of which one is installed: mmseg reads and resizes with it.
_LIBRARIES = (
    DISTRIBUTION,
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "opencv-python",
    "opencv-python-headless",
    "hotcoco",
    "scikit-learn",
)


@cache
def git_revision() -> str:
    """Return the revision of the code that runs, with "+changes" when the tree differs from it.

    A snapshot made for a cluster job has no git directory and says its revision in CARRYOVER_GIT_REVISION;
    an installed wheel has neither and is known by its version.
    """
    if recorded := os.environ.get("CARRYOVER_GIT_REVISION"):
        return recorded
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return f"release {release()}"
    try:
        revision = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return revision + ("+changes" if changed else "")


@cache
def library_versions() -> tuple[tuple[str, str], ...]:
    """Return (name, version) of Python and of the libraries that decide a result."""
    versions = [("python", platform.python_version())]
    for name in _LIBRARIES:
        try:
            versions.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(versions)


def hardware(device: "torch.device | None" = None, processes: int = 1) -> str:
    """Return the accelerators in use ("8x NVIDIA H200"), or the processor and its core count.

    Without a `device` the one that recipes are carried out on unless they say otherwise.
    """
    from carryover.core.training.device import choose_device, name_of

    device = choose_device() if device is None else device
    if device.type != "cpu":
        return f"{processes}x {name_of(device)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor_name()}, {cores} cores"


def host() -> str:
    """Return this machine's name."""
    return socket.gethostname()


def job_id() -> str | None:
    """Return the SLURM job id (array jobs as ``123_4``), or None outside a job."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
