"""Write tests/golden/v1 with the code of revision 61b7ba6, the last that wrote files of version 1.

    git worktree add V1 61b7ba6
    PYTHONPATH=V1 python tests/golden/make_v1.py OUT

Weights are drawn as repetitions of 4 x 4 tiles: every file is what that revision writes, and packs into kilobytes.
"""

import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

CLASSIFY = ["image.size=32", "image.resize=32", "workers=0", "precision=fp32"]
DETECT = [
    "model.fpn_dim=16",
    "model.box_fc_dim=32",
    "model.rpn.post_nms_train=16",
    "model.rpn.post_nms_test=8",
    "model.roi.batch_per_image=8",
    "input.min_sizes_train=[64]",
    "input.min_size_test=64",
    "solver.ims_per_batch=2",
    "solver.reference_ims_per_batch=2",
    "solver.max_iter=6",
    "solver.steps=[4]",
    "solver.warmup_iters=2",
    "solver.precision=fp32",
    "precise_bn=1",
    "log_every=2",
    "samples=1",
]
SEGMENT = [
    "data.classes=[background, disk, star, triangle, cross]",
    "model.channels=8",
    "model.auxiliary.channels=8",
    "input.scale=[128, 64]",
    "input.crop_size=[48, 48]",
    "input.test_scale=[128, 64]",
    "solver.ims_per_batch=2",
    "solver.reference_ims_per_batch=2",
    "solver.base_lr=0.05",
    "solver.max_iter=6",
    "workers=0",
    "log_every=2",
    "samples=1",
]
IMAGES, SCENES = '"data.root=${roots.classification}"', '"data.root=${roots.detection}"'
TINY = '"augment.view.size=32", "batch_size=16", "schedule.epochs=2", "schedule.warmup_epochs=0", "precision=fp32"'
QUOTED = {name: ", ".join(f'"{o}"' for o in given) for name, given in (("c", CLASSIFY), ("d", DETECT))}
PIPELINE = [
    "shapes={n_train: 40, n_val: 20, n_detection: 6}",
    "convert=[torchvision]",
    f'pretrain=[{{recipe: simo_demo, overrides: [{IMAGES}, {TINY}, "method.negatives=4", "optimizer.base_lr=0.4"]}}]',
    f"evaluate=[{{recipe: demo_finetune_10percent, seeds: [0, 1], overrides: [{IMAGES}, {QUOTED['c']},"
    ' "labels.fraction=0.5", "schedule.epochs=2"]}, '
    f'{{recipe: demo_faster_fpn, overrides: [{SCENES}, {QUOTED["d"]}, "samples=0"]}}]',
]


def tile(tensor: Tensor) -> Tensor:
    """Fill with a tile drawn from torch's generator, repeated along the first two dimensions."""
    shape = [min(4, n) for n in tensor.shape[:2]]
    drawn = torch.randn([*shape, *(1 for _ in tensor.shape[2:])]) * 0.05
    rows = torch.arange(tensor.shape[0]) % shape[0]
    filled = drawn[rows]
    if tensor.dim() > 1:
        filled = filled[:, torch.arange(tensor.shape[1]) % shape[1]]
    with torch.no_grad():
        return tensor.copy_(filled.expand_as(tensor))


@contextmanager
def tiled_weights() -> Iterator[None]:
    """Make every initializer of torch fill with tiles."""
    names = ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "trunc_normal_", "xavier_uniform_")
    with mock.patch.multiple(nn.init, **{n: lambda tensor, *a, **k: tile(tensor) for n in names}):
        yield


@contextmanager
def stopped_after(looks: int) -> Iterator[None]:
    """Let the next training be asked to stop when it looks the given number of times."""
    from pretrain.interrupt import Interrupted, StopRequest

    count = [0]

    def requested(self: StopRequest) -> bool:
        count[0] += 1
        if count[0] >= looks:
            self.signum = signal.SIGTERM
            return True
        return False

    try:
        with mock.patch.object(StopRequest, "requested", requested):
            yield
    except Interrupted:
        return
    raise SystemExit("the training ended before it could be stopped")


def run_pipeline(run: Path, overrides: list[str], executor: str, succeeds: bool = True) -> None:
    from transfer.commands import register_recipes

    from configs import load
    from slurm.control import make_executor
    from slurm.executor import run_graph
    from transfer.pipeline import plan

    register_recipes()
    config = load("pipelines", "demo", overrides)
    result = run_graph(plan(config, run), make_executor(executor), run)
    assert result.succeeded == succeeds, result.unsuccessful


def evaluations(work: Path, checkpoint: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield name, recipe and overrides of one evaluation of every task."""
    images = work / "shapes" / "data" / "classification"
    scenes = work / "shapes" / "data" / "detection"
    both = [f"data.root={images}", *CLASSIFY]
    yield (
        "finetune",
        "demo_finetune_10percent",
        [*both, "labels.fraction=0.5", "schedule.epochs=4", "batch_size=8"],
    )
    yield "knn", "demo_knn", [*both, "k=[5]"]
    yield "tsne", "demo_tsne", [*both, "images=20", "perplexity=5"]
    frozen = ["data.kind=imagefolder", "data.split=train", "data.test_split=val", "data.name=shapes"]
    protocol = [
        "mode.schedule.epochs=2",
        "mode.schedule.milestones=[1]",
        "mode.batch_size=8",
        "mode.lr_per=8",
    ]
    yield "linear", "linear_cifar10", [*both, *frozen, *protocol]
    yield "linear_cached", "linear_cached_cifar10", [*both, *frozen]
    voc = [
        "data.title=shapes",
        "data.classes=[disk, star, triangle, cross]",
        "data.train=trainval",
        "data.test=test",
    ]
    svm = [f"data.root={scenes / 'VOC2007'}", "image.size=32", "image.resize=32", "image.pixel_mean=null"]
    yield "svm", "svm_voc07", [*svm, "image.pixel_std=null", "workers=0", "costs=[0.1, 1.0]", *voc]
    detect = [f"data.root={scenes}", *DETECT]
    yield "detection", "demo_mask_fpn", detect
    if detectron2():
        yield "detection_detectron2", "demo_faster_fpn", [*detect, "backend=detectron2"]
    segment = [f"data.root={work / 'folders'}", *SEGMENT]
    yield "segmentation", "fcn_folders", segment
    yield "segmentation_mmseg", "fcn_folders", [*segment, "backend=mmseg"]


def detectron2() -> bool:
    import importlib.util

    return importlib.util.find_spec("detectron2") is not None


def evaluate(recipe: str, overrides: list[str], checkpoint: Path, out: Path) -> None:
    from transfer.commands import register_recipes
    from transfer.evaluate import evaluate as run

    from configs import load

    register_recipes()
    run(load("transfer", recipe, overrides), checkpoint, out)


def keep(out: Path, to: Path, names: tuple[str, ...]) -> None:
    to.mkdir(parents=True)
    for name in names:
        for found in sorted(out.glob(name)):
            (to / found.relative_to(out)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(found, to / found.relative_to(out)) if found.is_dir() else shutil.copy2(
                found, to / found.relative_to(out)
            )


def pack(directory: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:xz") as packed:
        packed.add(directory, directory.name)
    print(f"{archive.name}: {archive.stat().st_size / 1024:.0f} KiB", flush=True)


def main(target: Path, work: Path) -> None:
    from transfer.shapes import write_shapes

    from tests.transfer.segment.scenes import write_folders
    from transfer.convert import convert

    target.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    os.chdir(work)
    os.environ["CARRYOVER_GIT_REVISION"] = "61b7ba6a0000000000000000000000000000000"[:40]
    with tiled_weights():
        # A run that finished, one of processes, one that was stopped in its pretraining.
        run_pipeline(work / "run-inline", PIPELINE, "inline")
        given = work / "run-inline/stages/pretrain/simo_demo-seed0/out/backbone.safetensors"
        shutil.copy2(given, work / "given.safetensors")
        local = [
            PIPELINE[0],
            "convert=[canonical]",
            "pretrain=[]",
            f"checkpoint={work / 'given.safetensors'}",
        ]
        knn = f'evaluate=[{{recipe: demo_knn, overrides: [{IMAGES}, {QUOTED["c"]}, "k=[5]"]}}]'
        run_pipeline(work / "run-local", [*local, knn], "local")
        with mock.patch("pretrain.interrupt.StopRequest.requested", _third_look()):
            run_pipeline(work / "run-stopped", PIPELINE, "inline", succeeds=False)
        for name in ("run-inline", "run-local", "run-stopped"):
            pack(work / name, target / f"{name}.tar.xz")

        # One result of every task, receipts of every target, states from half-way.
        write_shapes(work / "shapes" / "data", n_train=40, n_val=20, n_detection=24)
        write_folders(work / "folders", images=6)
        checkpoint = work / "run-inline/stages/pretrain/simo_demo-seed0/out/backbone.safetensors"
        files = work / "files"
        keep(checkpoint.parent, files / "canonical", ("backbone.safetensors",))
        for to, suffix in (
            ("torchvision", ".pth"),
            ("detectron2", ".pkl"),
            ("mmseg", ".pth"),
            ("timm", ".safetensors"),
        ):
            convert(checkpoint, to, work / "converted" / f"{to}{suffix}")
            keep(work / "converted", files / "receipts" / to, (f"{to}*",))
        kept = (
            "result.json",
            "recipe.yaml",
            "metrics.jsonl",
            "predictions*",
            "choices.csv",
            "*.csv",
            "confusion*",
        )
        for name, recipe, overrides in evaluations(work, checkpoint):
            print(name, flush=True)
            evaluate(recipe, overrides, checkpoint, work / "done" / name)
            keep(work / "done" / name, files / "results" / name, kept)
            if (
                name.partition("_")[0] in ("finetune", "linear", "detection", "segmentation")
                and name != "linear_cached"
            ):
                with stopped_after(3):
                    evaluate(recipe, overrides, checkpoint, work / "half" / name)
                state = (
                    "checkpoint.pt",
                    "recipe.yaml",
                    "metrics.jsonl",
                    "work_dir*",
                    "*.pth",
                    "last_checkpoint",
                )
                keep(work / "half" / name, files / "states" / name, state)
        shutil.copytree(work / "shapes", files / "shapes")
        shutil.copytree(work / "folders", files / "folders", ignore=shutil.ignore_patterns("shapes"))
        pack(files, target / "files.tar.xz")


def _third_look() -> Callable[..., bool]:
    count = [0]

    def requested(self: object) -> bool:
        count[0] += 1
        if count[0] == 3:
            self.signum = signal.SIGTERM  # type: ignore[attr-defined]
            return True
        return False

    return requested


if __name__ == "__main__":
    import tempfile

    destination = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as scratch:
        main(destination, Path(scratch))
