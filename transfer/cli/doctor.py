"""Installed and missing parts on this machine, and how to install them."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from carryover.configs.formats import DISTRIBUTION, release
from carryover.core.processor import bf16_instructions
from carryover.transfer.cli.finding import Finding, State, version


def examine(tries: bool = False) -> Iterator[Finding]:
    """Yield a finding for everything that carryover uses, the indispensable first.

    With `tries` the large libraries are imported and the device is used; otherwise it is looked up what is
    installed, and whether the versions go together.
    """
    tried: dict[str, Callable[[], Finding]] = {}
    if tries:
        from carryover.transfer.cli.doctor_tries import TRIES

        tried = {check.__name__: check for check in TRIES}
    for check in _CHECKS:
        yield tried.get(check.__name__, check)()


def _own_files() -> Finding:
    # Another project's distribution called carryover installs a module and a command of that name.
    others = sorted(set(metadata.packages_distributions().get("carryover", ())) - {DISTRIBUTION})
    if others:
        detail = f"files of {', '.join(others)} lie in the package carryover beside ours"
        remedy = f"pip uninstall {' '.join(others)}; {_REINSTALL}"
        return Finding("carryover", "broken", detail, needed=True, remedy=remedy)
    return Finding("carryover", "ok", f"{DISTRIBUTION} {release()}", needed=True)


def _torch() -> Finding:
    found = version("torch")
    if not found:
        return Finding(
            "torch", "broken", "not installed", needed=True, remedy="pip install torch torchvision"
        )
    return Finding("torch", "ok", found, needed=True)


def _torchvision() -> Finding:
    remedy = "pip install 'torch>=2.9.1' torchvision  (the two must come together)"
    found = version("torchvision")
    if not found:
        return Finding("torchvision", "broken", "not installed", needed=True, remedy=remedy)
    torch = version("torch")
    own, theirs = _numbers(found), _numbers(torch)
    # torchvision 0.15 came with torch 2.0, 0.16 with 2.1 and so on.
    if own[:1] == (0,) and theirs[:1] == (2,) and own[1] - theirs[1] != 15:
        detail = f"{found} is made for torch 2.{own[1] - 15}, and torch is {torch}"
        return Finding("torchvision", "broken", detail, needed=True, remedy=remedy)
    return Finding("torchvision", "ok", found, needed=True)


def _gpu() -> Finding:
    node = next((path for path in _DEVICES if Path(path).exists()), None)
    build = version("torch").partition("+")[2]
    if node is None and sys.platform != "darwin":
        remedy = "everything runs on the CPU; a GPU and its driver make it faster"
        return Finding("GPU", "missing", "no driver of NVIDIA or AMD", remedy=remedy)
    if build == "cpu":
        detail = f"a driver is there ({node}), but torch is built for the CPU"
        return Finding(
            "GPU", "broken", detail, remedy="install torch for it: https://pytorch.org/get-started"
        )
    return Finding("GPU", "ok", f"{node or 'Metal'}; `doctor --try` tests whether torch can use it")


def _bf16() -> Finding:
    found = bf16_instructions()
    if found == "AMX":
        found += ": convolutions train 3 to 4 times faster than in fp32"
    if found:
        return Finding("bf16 on the CPU", "ok", found)
    return Finding("bf16 on the CPU", "missing", "emulated, slow", remedy="use precision=fp32 on this CPU")


def _coco() -> Finding:
    found = [f"{name} {version(name)}" for name in ("hotcoco", "pycocotools") if version(name)]
    state: State = "ok" if len(found) == 2 else "broken"
    return Finding(
        "COCO metrics", state, ", ".join(found), needed=True, remedy="" if state == "ok" else _REINSTALL
    )


def _detectron2() -> Finding:
    upstream = "see Detectron2's own INSTALL.md; an unbuilt source tree on PYTHONPATH is enough"
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return Finding("Detectron2", "missing", "reference detection backend", remedy=upstream)
    absent = [name for name in _OF_DETECTRON2 if importlib.util.find_spec(name) is None]
    if absent:
        remedy = f"pip install 'carryover-eval[detectron2]' ({upstream})"
        return Finding("Detectron2", "broken", f"it imports {', '.join(absent)}", remedy=remedy)
    folder = Path(spec.origin).parent
    built = "built" if any(folder.glob("_C.*")) else "unbuilt: R-CNN C4 and FPN only"
    stated = re.search(r'__version__\s*=\s*"([^"]+)"', Path(spec.origin).read_text(encoding="utf-8"))
    return Finding("Detectron2", "ok", f"{stated[1] if stated else 'found'} ({built})")


def _mmseg() -> Finding:
    parts = {name: version(name) for name in ("mmsegmentation", "mmcv", "mmcv-lite", "mmengine")}
    if not parts["mmsegmentation"]:
        remedy = "pip install 'carryover-eval[mmseg]'  (torchvision's FCN is there without it)"
        return Finding("mmsegmentation", "missing", "reference segmentation backend", remedy=remedy)
    detail = ", ".join(f"{name} {own}" for name, own in parts.items() if own)
    remedy = "pip install 'carryover-eval[mmseg]'; a built mmcv: see mmcv's own installation page"
    mmcv = parts["mmcv"] or parts["mmcv-lite"]
    if not mmcv or not parts["mmengine"]:
        return Finding("mmsegmentation", "broken", f"{detail}: mmcv or mmengine is missing", remedy=remedy)
    spec = importlib.util.find_spec("mmseg")
    source = Path(spec.origin).read_text(encoding="utf-8") if spec is not None and spec.origin else ""
    # mmseg raises for most versions of mmcv when it is imported.
    bounds = [re.search(rf"MMCV_{end}\s*=\s*'([^']+)'", source) for end in ("MIN", "MAX")]
    low, high = (_numbers(bound[1]) if bound else None for bound in bounds)
    if low is not None and high is not None and not low <= _numbers(mmcv) < high:
        return Finding("mmsegmentation", "broken", f"{detail}: it does not accept this mmcv", remedy=remedy)
    kind = "built mmcv" if parts["mmcv"] else "mmcv-lite: FCN and UPerNet"
    return Finding("mmsegmentation", "ok", f"{detail} ({kind})")


def _timm() -> Finding:
    found = version("timm")
    if not found:
        return Finding(
            "timm", "missing", "a target of `convert`", remedy="pip install 'carryover-eval[timm]'"
        )
    return Finding("timm", "ok", found)


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


_DEVICES = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg")
_OF_DETECTRON2 = ("fvcore", "iopath", "omegaconf", "hydra", "yacs", "tabulate", "cloudpickle", "termcolor")
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


def _sacct_answers() -> bool:
    try:
        return subprocess.run(["sacct", "-n", "-X"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:3])
