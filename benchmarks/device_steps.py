"""What one step of every training costs on a device: operators, waits of the host, bytes sent, bytes held.

    python benchmarks/device_steps.py [--out FILE]

Counted, not timed, and on no GPU: the trainings run on the tests' second device (tests/second_device), which
computes on the CPU, refuses what CUDA refuses and counts what CUDA waits for. A step is counted that neither
begins nor ends a training, and that is not reported. Networks are ResNets-18; pretraining and fine-tuning see
12 images of 32 px a step, made by the loader's processes or, "on the device", where the network is.
docs/performance.md shows the table.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.device_parts.correctness import CALM, METHODS, masks_of, network_for, shapes_for
from benchmarks.device_parts.row import Setting
from carryover.configs import load
from carryover.pretrain.trainer import train
from carryover.transfer.tasks.evaluate import evaluate
from tests.second_device.backend import SECOND, second_device
from tests.second_device.counting import Costs
from tests.second_device.steps import count_steps

BATCH, STEPS = 12, 4
SOLVER = (
    "solver.max_iter=5",
    "solver.ims_per_batch=2",
    "solver.reference_ims_per_batch=2",
    "log_every=100",
    "checkpoints=1",
    "workers=0",
    "samples=0",
    "device=second",
)
DETECTOR = (
    "data.defects.absent_class=keep",
    "input.min_sizes_train=[128]",
    "input.min_size_test=128",
    "precise_bn=0",
    *SOLVER,
)
SCHEDULE = ("solver.steps=[4]", "solver.warmup_iters=2")


def trainings(setting: Setting) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Yield every training by name; each is given the directory that it is to leave its files in."""
    shapes, network = shapes_for(setting), network_for(setting)
    base = setting.folder / "base.yaml"
    base.write_text("source: benchmark\n", encoding="utf-8")
    data = f"data={{kind: imagefolder, name: shapes, root: {shapes.classification}, resize: 32}}"
    shared = (
        *CALM,
        data,
        f"batch_size={BATCH}",
        "schedule={epochs: 1}",
        f"data.subset.count={BATCH * STEPS}",
    )
    for where in ("loader", "batched"):
        for name, overrides in METHODS.items():
            keys = [*shared, *overrides, "log_every=100", f"augment.backend={where}", "device=second"]
            shown = name if where == "loader" else f"{name}, views on the device"
            if where == "loader" or name in ("unigrad", "unigrad, CutMix, multi-crop", "sqrtkl"):
                yield shown, lambda out, keys=keys: train(load("pretrain", base, keys), out)
    labeled = [
        f"data.root={shapes.classification}",
        f"batch_size={BATCH}",
        "image.size=32",
        "image.resize=32",
    ]
    transfers: dict[str, tuple[str, list[str]]] = {
        "fine-tuning": (
            "demo_finetune_10percent",
            [
                *labeled,
                "labels={name: all}",
                "schedule.epochs=1",
                "log_every=100",
                "workers=0",
                "device=second",
            ],
        ),
        "detection, Faster R-CNN FPN": (
            "demo_faster_fpn",
            [f"data.root={shapes.detection}", *DETECTOR, *SCHEDULE],
        ),
        "detection, Mask R-CNN FPN": (
            "demo_mask_fpn",
            [f"data.root={shapes.detection}", *DETECTOR, *SCHEDULE],
        ),
        "detection, Faster R-CNN C4": (
            "demo_faster_c4",
            [f"data.root={shapes.detection}", *DETECTOR, *SCHEDULE],
        ),
        "segmentation, FCN": (
            "fcn_folders",
            [
                f"data.root={masks_of(shapes.detection, setting.folder / 'masks')}",
                "data.classes=[background, thing]",
                "input.crop_size=[96, 96]",
                "input.scale=[256, 128]",
                *SOLVER,
            ],
        ),
    }
    for name, (recipe, overrides) in transfers.items():
        config: Any = load("transfer", recipe, overrides)
        yield name, lambda out, config=config: evaluate(config, network, out)


def costs(setting: Setting) -> Iterator[tuple[str, Costs]]:
    for number, (name, run) in enumerate(trainings(setting)):
        with pytest.MonkeyPatch.context() as patched, second_device():
            steps = count_steps(patched)
            run(setting.folder / f"run{number}")
        yield name, steps.of_step[3]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="a file to append each line to as it is found")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, found in costs(Setting(SECOND, True, Path(folder))):
            cells = (
                name,
                f"{found.operators:,}",
                f"{found.synchronizations}",
                f"{found.bytes_to_device / 1e3:,.1f}",
                f"{found.peak_bytes / 1e6:,.1f}",
            )
            line = f"| {' | '.join(cells)} |"
            print(line, flush=True)
            for who, times in found.waits.most_common():
                print(f"    {times} x {who}", file=sys.stderr, flush=True)
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
