"""Checks that import libraries and use the device: `carryover doctor --try`."""

import importlib
import importlib.util

from carryover.transfer.cli.finding import Finding, version


def _torch() -> Finding:
    import torch

    threads = torch.get_num_threads()
    return Finding("torch", "ok", f"{torch.__version__}, {threads} threads", needed=True)


def _torchvision() -> Finding:
    remedy = "pip install 'torch>=2.9.1' torchvision  (the two must come together)"
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        return Finding("torchvision", "broken", str(error).splitlines()[0], needed=True, remedy=remedy)
    return Finding("torchvision", "ok", torchvision.__version__, needed=True)


def _gpu() -> Finding:
    from carryover.core.training.device import choose_device, device_count, name_of

    device, remedy = choose_device(), "everything runs on the CPU; a GPU and its driver make it faster"
    if device.type == "cpu":
        return Finding("GPU", "missing", "no CUDA device, and no other device known to torch", remedy=remedy)
    return Finding("GPU", "ok", f"device: {device.type}, {device_count()}x {name_of(device)}")


def _detectron2() -> Finding:
    upstream = "see Detectron2's own INSTALL.md; an unbuilt source tree on PYTHONPATH is enough"
    if importlib.util.find_spec("detectron2") is None:
        return Finding("Detectron2", "missing", "reference detection backend", remedy=upstream)
    try:
        release = importlib.import_module("detectron2").__version__
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
    return Finding("Detectron2", "ok", f"{release} ({works})")


def _mmseg() -> Finding:
    from carryover.transfer.convert.mmcv_stub import install
    from carryover.transfer.convert.target import quiet

    parts = {name: version(name) for name in ("mmsegmentation", "mmcv", "mmcv-lite", "mmengine")}
    if not parts["mmsegmentation"]:
        remedy = "pip install 'carryover-eval[mmseg]'  (torchvision's FCN is there without it)"
        return Finding("mmsegmentation", "missing", "reference segmentation backend", remedy=remedy)
    detail = ", ".join(f"{name} {own}" for name, own in parts.items() if own)
    upstream = "pip install 'carryover-eval[mmseg]'; a built mmcv: see mmcv's own installation page"
    try:
        # Installed is not enough: mmseg raises for most versions of mmcv when it is imported.
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


TRIES = (_torch, _torchvision, _gpu, _detectron2, _mmseg)
