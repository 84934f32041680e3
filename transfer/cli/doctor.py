"""What works on this machine, what is missing, and how to get it."""

import importlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from carryover.configs.formats import DISTRIBUTION, release

State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes
    ----------
    needed
        Whether carryover cannot work without it.
    remedy
        How to get it, or where upstream explains that; empty when nothing is missing.
    """

    what: str
    state: State
    detail: str
    needed: bool = False
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Yield a finding for everything that carryover uses, the indispensable first."""
    for check in _CHECKS:
        yield check()


def _own_files() -> Finding:
    # A distribution called carryover, of somebody else, installs a module and a command of that name.
    others = sorted(set(metadata.packages_distributions().get("carryover", ())) - {DISTRIBUTION})
    if others:
        detail = f"files of {', '.join(others)} lie in the package carryover beside ours"
        remedy = f"pip uninstall {' '.join(others)}; {_REINSTALL}"
        return Finding("carryover", "broken", detail, needed=True, remedy=remedy)
    return Finding("carryover", "ok", f"{DISTRIBUTION} {release()}", needed=True)


def _torch() -> Finding:
    import torch

    threads = torch.get_num_threads()
    return Finding("torch", "ok", f"{torch.__version__}, {threads} threads", needed=True)


def _torchvision() -> Finding:
    remedy = "pip install 'torch>=2.14' torchvision  (the two must come together)"
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        return Finding("torchvision", "broken", str(error).splitlines()[0], needed=True, remedy=remedy)
    return Finding("torchvision", "ok", torchvision.__version__, needed=True)


def _gpu() -> Finding:
    from carryover.core.training.device import choose_device, device_count, name_of

    device, remedy = choose_device(), "everything runs on the CPU; a GPU and its driver make it faster"
    if device.type == "cpu":
        return Finding("GPU", "missing", "no CUDA device, nor another that torch knows", remedy=remedy)
    return Finding("GPU", "ok", f"device: {device.type}, {device_count()}x {name_of(device)}")


def _bf16() -> Finding:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    if "amx_bf16" in flags:
        return Finding("bf16 on the CPU", "ok", "AMX: convolutions train 3 to 4 times faster than in fp32")
    if "avx512_bf16" in flags:
        return Finding("bf16 on the CPU", "ok", "AVX-512 bf16")
    return Finding("bf16 on the CPU", "missing", "emulated, slow", remedy="use precision=fp32 on this CPU")


def _coco() -> Finding:
    found = [f"{name} {_version(name)}" for name in ("hotcoco", "pycocotools") if _version(name)]
    state: State = "ok" if len(found) == 2 else "broken"
    return Finding(
        "COCO metrics", state, ", ".join(found), needed=True, remedy="" if state == "ok" else _REINSTALL
    )


def _detectron2() -> Finding:
    upstream = "see Detectron2's own INSTALL.md; an unbuilt source tree on PYTHONPATH is enough"
    if importlib.util.find_spec("detectron2") is None:
        return Finding("Detectron2", "missing", "reference detection backend", remedy=upstream)
    try:
        version = importlib.import_module("detectron2").__version__
        importlib.import_module("detectron2.modeling")
    except ImportError as error:
        remedy = f"pip install 'carryover-eval[detectron2]' ({upstream})"
        return Finding("Detectron2", "broken", str(error), remedy=remedy)
    built = importlib.util.find_spec("detectron2._C") is not None
    works = (
        "built"
        if built
        else "unbuilt: R-CNN C4 and FPN train and test; rotated boxes and deformable layers do not"
    )
    return Finding("Detectron2", "ok", f"{version} ({works})")


def _mmseg() -> Finding:
    from carryover.transfer.convert.mmcv_stub import install
    from carryover.transfer.convert.target import quiet

    parts = {name: _version(name) for name in ("mmsegmentation", "mmcv", "mmcv-lite", "mmengine")}
    if not parts["mmsegmentation"]:
        remedy = "pip install 'carryover-eval[mmseg]'  (torchvision's FCN is there without it)"
        return Finding("mmsegmentation", "missing", "reference segmentation backend", remedy=remedy)
    detail = ", ".join(f"{name} {version}" for name, version in parts.items() if version)
    upstream = "pip install 'carryover-eval[mmseg]'; a built mmcv: see mmcv's own installation page"
    try:
        # Installed is not enough: mmseg refuses most versions of mmcv when it is imported.
        install()
        with quiet():
            importlib.import_module("mmseg.models")
    except (ImportError, AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Finding("mmsegmentation", "broken", f"{detail}: {reason}", remedy=upstream)
    kernels = importlib.util.find_spec("mmcv._ext")
    kind = (
        # Our stand-in for the kernels has no loader.
        "built mmcv: every head works"
        if kernels is not None and kernels.loader is not None
        else "mmcv-lite: FCN and UPerNet train and test, heads with mmcv's own operators do not"
    )
    return Finding("mmsegmentation", "ok", f"{detail} ({kind})")


def _timm() -> Finding:
    version = _version("timm")
    if not version:
        return Finding(
            "timm", "missing", "a target of `convert`", remedy="pip install 'carryover-eval[timm]'"
        )
    return Finding("timm", "ok", version)


def _slurm() -> Finding:
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        remedy = "submit from a machine with SLURM's commands, or use --executor inline|local"
        return Finding("SLURM", "missing", "no sbatch on PATH", remedy=remedy)
    try:
        answer = subprocess.run(["sinfo", "-h", "-o", "%P"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("SLURM", "broken", str(error), remedy="ask the cluster's administrator")
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["sinfo failed"])[0]
        return Finding(
            "SLURM", "broken", reason, remedy="the controller does not answer; ask its administrator"
        )
    partitions = ", ".join(dict.fromkeys(answer.stdout.split()))
    accounting = "with accounting" if _sacct_answers() else "no accounting: times come from our own clock"
    return Finding("SLURM", "ok", f"partitions {partitions}; {accounting}")


def _space() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    state: State = "ok" if free >= 2 else "broken"
    remedy = "" if state == "ok" else "checkpoints and results need room: choose another --out"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("machine", state, f"{cores} cores, {free:.0f} GiB free here", needed=True, remedy=remedy)


_REINSTALL = "pip install --force-reinstall carryover-eval"
_CHECKS: tuple[Callable[[], Finding], ...] = (
    _own_files,
    _space,
    _torch,
    _torchvision,
    _coco,
    _gpu,
    _bf16,
    _detectron2,
    _mmseg,
    _timm,
    _slurm,
)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _sacct_answers() -> bool:
    try:
        return subprocess.run(["sacct", "-n", "-X"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
