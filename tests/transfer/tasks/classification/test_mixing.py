"""Mixup and CutMix of a fine-tuning: timm's images and targets, by group, and exact to resume."""

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch.nn.functional import cross_entropy

from carryover.configs import UserError
from carryover.core.data.draws import keys
from carryover.core.formats.metrics_log import read_metrics
from carryover.core.training.distributed import Ranks
from carryover.transfer.tasks.evaluate import evaluate
from carryover.transfer.tasks.finetune.config import FinetuneConfig
from carryover.transfer.tasks.finetune.mixing import mixed, require_groups
from tests.interrupting import in_two_parts
from tests.transfer.convert.timm_backbones import write_timm
from tests.transfer.tasks.classification.test_finetune import assert_same_weights, recipe

CPU = torch.device("cpu")
CLASSES = 7
MIX = "mix={mixup: 0.8, cutmix: 1.0, prob: 0.9, switch: 0.5, group: 4}"


def config_of(images: Path, mix: str = MIX) -> FinetuneConfig:
    return recipe(images, "batch_size=16", "smoothing=0.1", mix)


def batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.randint(CLASSES, (n,), generator=generator)


@pytest.mark.parametrize("step", range(6))
def test_a_group_is_mixed_as_timm_mixes_a_batch(images: Path, step: int) -> None:
    config = config_of(images)
    pixels, labels = batch(16)
    ours, targets = mixed(pixels.clone(), labels, CLASSES, config, step, Ranks(0, 1, CPU))
    theirs = Mixup(0.8, 1.0, prob=0.9, switch_prob=0.5, label_smoothing=0.1, num_classes=CLASSES)
    changed = 0
    for group in range(4):
        key = int(keys(config.seed, 6, step, group)[0])
        np.random.seed([key % 2**32, key // 2**32])  # noqa: NPY002
        at = slice(4 * group, 4 * group + 4)
        x, y = theirs(pixels[at].clone(), labels[at])
        assert torch.equal(ours[at], x) and torch.equal(targets[at], y)
        changed += not torch.equal(x, pixels[at])
    assert changed and not torch.equal(ours, pixels)
    torch.testing.assert_close(targets.sum(1), torch.ones(16))
    logits = torch.randn(16, CLASSES, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(cross_entropy(logits, targets), SoftTargetCrossEntropy()(logits, targets))
    smooth = cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(smooth, LabelSmoothingCrossEntropy(0.1)(logits, labels))


def test_ranks_mix_what_one_process_mixes(images: Path) -> None:
    config = config_of(images)
    pixels, labels = batch(16)
    whole = mixed(pixels.clone(), labels, CLASSES, config, 3, Ranks(0, 1, CPU))
    halves = [
        mixed(pixels[at].clone(), labels[at], CLASSES, config, 3, Ranks(rank, 2, CPU))
        for rank, at in enumerate((slice(0, 8), slice(8, 16)))
    ]
    for one, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(one, torch.cat(parts))
    with pytest.raises(UserError, match=r"mix.group: 4 images do not divide the 2 of a rank's batch"):
        require_groups(config.mix, 16, Ranks(0, 8, CPU))


@pytest.mark.parametrize("n", [1, 3, 5, 7])
def test_in_an_odd_group_the_image_in_the_middle_stays(images: Path, n: int) -> None:
    config = config_of(images, "mix={mixup: 0.8, cutmix: 0, group: 8}")
    pixels, labels = batch(n)
    ours, targets = mixed(pixels.clone(), labels, CLASSES, config, 0, Ranks(0, 1, CPU))
    middle = n // 2
    same = (ours == pixels).flatten(1).all(1)
    assert same.tolist() == [row == middle for row in range(n)]
    own = torch.full((CLASSES,), 0.1 / CLASSES)
    own[labels[middle]] += 0.9
    torch.testing.assert_close(targets[middle], own)


def test_nothing_to_mix_is_refused(images: Path) -> None:
    with pytest.raises(UserError, match="mix nothing; leave mix out"):
        config_of(images, "mix={mixup: 0, cutmix: 0}")


def test_maes_whole_protocol_learns_and_resumes_exactly(images, tmp_path, monkeypatch) -> None:
    source = write_timm(tmp_path / "source.safetensors", "vit_tiny_patch16_224", input_size=32)
    config = recipe(
        images,
        "optimizer={algorithm: adamw, base_lr_backbone: 0.001, base_lr_head: 0.001, lr_per: 8,"
        " weight_decay: 0.05, layer_decay: 0.65, decay_norm_and_bias: false}",
        "schedule={name: cosine, epochs: 6, rise: 1, end: 0.0005}",
        "feature=fc_norm",
        "drop_path=0.1",
        "smoothing=0.1",
        "head_init=truncated",
        "head_norm=none",
        "image.interpolation=bicubic",
        "image.rand_augment=rand-m9-mstd0.5-inc1",
        "image.erase={p: 0.25}",
        "mix={group: 4}",
        "drop_last=true",
    )
    evaluate(config, source, tmp_path / "whole")
    rows = list(read_metrics(tmp_path / "whole" / "metrics.jsonl"))
    assert rows[-1]["loss"] < rows[0]["loss"]
    in_two_parts(lambda: evaluate(config, source, tmp_path / "parts"), 4, monkeypatch)
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    # Another number of workers is the same work, bit for bit.
    other = config.model_copy(update={"workers": 2})
    evaluate(other, source, tmp_path / "workers")
    assert_same_weights(tmp_path / "workers", tmp_path / "whole")
