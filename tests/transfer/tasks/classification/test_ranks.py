"""Two processes compute what one does: fine-tuning, linear evaluation and k-NN."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from carryover.configs import load
from carryover.transfer.results.record import ResultRecord
from carryover.transfer.tasks.evaluate import evaluate
from tests.pretrain.ranks import on_ranks

SMALL = ("image.size=32", "image.resize=32", "precision=fp32", "workers=0")


def _evaluate_all(rank: int, images: Path, checkpoint: Path, out: Path) -> dict[str, list[Any]]:
    data = f"data={{name: tiny, kind: imagefolder, root: {images}, test_split: val}}"
    frozen = [data, *SMALL, "extract_batch=10", f"store={out / 'store'}"]
    runs: dict[str, Any] = {
        "finetune": load(
            "transfer",
            "demo_finetune_10percent",
            [
                data,
                *SMALL,
                "labels.fraction=0.5",
                "schedule.epochs=1",
                "batch_size=12",
                "sync_bn=true",
                "keep_weights=true",
                "selection={name: best_epoch, held_out: 0.2}",
            ],
        ),
        "mixed": load(
            "transfer",
            "demo_finetune_10percent",
            [
                data,
                *SMALL,
                "labels.fraction=0.8",
                "schedule.epochs=1",
                "batch_size=12",
                "sync_bn=true",
                "drop_last=true",
                "smoothing=0.1",
                "mix={mixup: 0.8, cutmix: 1.0, prob: 0.9, switch: 0.5, group: 3}",
                "keep_weights=true",
            ],
        ),
        "linear": load(
            "transfer",
            "linear_cifar10",
            [
                *frozen,
                "mode.schedule={name: cosine, epochs: 2}",
                "mode.batch_size=16",
                "mode.held_out=0.2",
            ],
        ),
        "cached": load("transfer", "linear_cached_cifar10", [*frozen, "mode.costs=[0.1, 1.0]"]),
        "knn": load("transfer", "knn_cifar10", [*frozen, "k=[5, 20]"]),
    }
    records = {name: evaluate(config, checkpoint, out / name) for name, config in runs.items()}
    return {name: [_comparable(r), r.facts["processes"]] for name, r in records.items()}


def _comparable(record: ResultRecord) -> list[tuple[str, float | None]]:
    chosen = record.facts.get("held_out_top1")
    assert chosen is None or isinstance(chosen, float)
    return [(m.label, m.value) for m in record.metrics] + [("held-out", chosen)]


@pytest.mark.slow
def test_two_ranks_get_one_ranks_numbers(images: Path, resnet: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone = _evaluate_all(0, images, resnet, tmp_path / "one")
    before = dict(os.environ)
    both = on_ranks(2, _evaluate_all, tmp_path, images, resnet, tmp_path / "two")
    assert dict(os.environ) == before
    for name, (expected, devices) in alone.items():
        assert devices == 1
        for found in both:
            assert found[name] == [expected, 2], name
    for run in ("finetune", "mixed"):
        one, two = (load_file(tmp_path / n / run / "classifier.safetensors") for n in ("one", "two"))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=2e-4, rtol=2e-3, msg=f"{run}: {name}")
