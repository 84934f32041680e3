"""The commands of the documentation: what makes them small, and which no test runs and why."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Every command that no test runs, by a pattern of its line, and why.
NOT_RUN: dict[str, str] = {
    r"^pip install carryover-eval": "needs the package index; `make wheel` installs the wheel",
    r"^make (demo|test|test-lowest|wheel)\b": "is what CI runs, and contains this test",
    r"^PYTHONPATH=\S+ .* pytest -m detectron2": "runs other tests, with Detectron2's source tree",
    r"^export PYTHONPATH=": "sets a variable; the tests with Detectron2 set it themselves",
    r"^torchrun --nproc-per-node 8": "needs 8 GPUs",
}
# Run in another way: by tests/slurm_cluster/test_docs.py on a cluster, and with Detectron2 only.
ON_A_CLUSTER = re.compile(
    r"^carryover (run (?!evaluate_checkpoint).*slurm(?!.*--dry-run)"
    r"|status(?! runs/random-knn)|logs|cancel|retry)\b"
)
WITH_DETECTRON2 = re.compile(r"^carryover evaluate .*backend=detectron2")

_TWO_IMAGES = "solver.max_iter=1 solver.ims_per_batch=2 solver.reference_ims_per_batch=2 workers=0"
_SMALL_BOXES = (
    f"{_TWO_IMAGES} solver.steps=[] solver.warmup_iters=0 precise_bn=0 samples=0 checkpoints=1 "
    "input.min_sizes_train=[64] input.min_size_test=64 data.defects.absent_class=keep "
    "model.rpn.post_nms_train=20 model.rpn.post_nms_test=20 model.roi.batch_per_image=16"
)
_FEW_STEPS = (
    "solver.max_iter=2 solver.steps=[] solver.warmup_iters=1 precise_bn=0 samples=2 "
    "input.min_sizes_train=[96] input.min_size_test=96"
)
_SMALL_IMAGES = "image.size=32 image.resize=32"
_ONE_EPOCH = (
    "batch_size=32 optimizer.lr=null schedule.epochs=1 schedule.warmup_epochs=0 workers=0 "
    "augment.view.size=32"
)
# Added to commands that contain this word, so that they take seconds.
SMALLER = {
    "small_knn": _SMALL_IMAGES,
    "small_finetune_cpu": f"{_SMALL_IMAGES} schedule.epochs=1",
    "small_detection_cpu": _FEW_STEPS,
    "./cells.yaml": _FEW_STEPS,
    "./class_mean.yaml": f"{_SMALL_IMAGES} image.input_size=any precision=fp32",
    "knn_imagenet": f"{_SMALL_IMAGES} data.root=/data/imagenet k=[5]",
    # SimCLR's list of 1 % names images of ImageNet.
    "simclr_1percent": f"{_SMALL_IMAGES} image.input_size=any 'labels={{name: fraction, fraction: 0.5}}' "
    "schedule.epochs=1 batch_size=8 optimizer.lr_backbone=null optimizer.lr_head=null workers=0",
    "voc0712_c4_24k": _SMALL_BOXES,
    "coco_fpn_1x": _SMALL_BOXES,
    "coco_c4_1x": _SMALL_BOXES,
    "fcn_r50_voc2012aug": f"{_TWO_IMAGES} "
    "input.crop_size=[64,64] input.test_scale=[128,128] data.defects.interpolated_class=keep",
    "unigrad_r50_100ep": _ONE_EPOCH,
    "mine.yaml": _ONE_EPOCH,
    "verify": "train_images=40 test_images=20 size=32",
    "evaluate_checkpoint": "--dry-run",  # its jobs request 8 GPUs
    "curve": "--dry-run",  # tests/transfer/pipeline/test_curve.py runs one
}


def shell_lines(page: Path) -> Iterator[str]:
    """Yield every command of a page, without its prompt and without the words that describe it."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        if language not in ("", "console", "bash", "sh", "shell") or "import carryover" in block:
            continue
        lines = [line for line in block.splitlines() if line and not line.startswith((" ", "#"))]
        if not any(re.match(r"(\$ )?(carryover|pip|make|export|\w+=) ?", line) for line in lines):
            continue  # a drawing, or a tree of files
        for line in lines:
            line = line.replace("[--follow]", "--follow").replace("[--failed]", "--failed")
            # Two spaces separate a command from its description.
            yield re.split(r"\s{2,}(?![-\[\s])", line.removeprefix("$ "))[0]


def carryover_lines() -> Iterator[tuple[Path, str]]:
    """Yield page and line of every command of carryover."""
    for page in PAGES:
        for line in shell_lines(page):
            if line.startswith("carryover "):
                yield page, line
