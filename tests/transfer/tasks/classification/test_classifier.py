"""Parameter groups, schedules and counting, against traces and references computed by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from torch import nn
from torch.nn.functional import cross_entropy

from carryover.configs import UserError, load
from carryover.transfer.tasks.accuracy import count
from carryover.transfer.tasks.finetune.config import FinetuneConfig
from carryover.transfer.tasks.finetune.model import Classifier, build_optimizer, set_rates
from carryover.transfer.tasks.schedules import CosineSchedule, MultiStepSchedule, rate_factor


def recipe(*overrides: str) -> FinetuneConfig:
    config = load("transfer", "demo_finetune_10percent", ["data.root=.", *overrides])
    assert isinstance(config, FinetuneConfig)
    return config


def toy(config: FinetuneConfig) -> Classifier:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
    return Classifier(backbone, 5, 7, config).double()


def batches(steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(6, 3, 4, 4, generator=generator, dtype=torch.float64),
            torch.randint(0, 7, (6,), generator=generator),
        )
        for _ in range(steps)
    ]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay_all", [False, True])
def test_training_follows_the_hand_computed_trace_of_both_rates(nesterov: bool, decay_all: bool) -> None:
    config = recipe(
        "optimizer.base_lr_backbone=0.1",
        "optimizer.base_lr_head=0.7",
        f"optimizer.nesterov={nesterov}",
        "optimizer.weight_decay=0.01",
        f"optimizer.decay_norm_and_bias={decay_all}",
        "head_init=uniform",
    )
    model, oracle = toy(config), toy(config)
    optimizer = build_optimizer(model, config, lr_backbone=0.1, lr_head=0.7)
    velocity: dict[str, torch.Tensor] = {}
    schedule = CosineSchedule(epochs=2, per="step")
    for step, (x, y) in enumerate(batches(6)):
        factor = rate_factor(schedule, step, epoch_steps=3)
        set_rates(optimizer, factor)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

        oracle.zero_grad()
        cross_entropy(oracle(x), y).backward()
        expected_factor = (1 + math.cos(math.pi * step / 6)) / 2
        with torch.no_grad():
            for name, w in oracle.named_parameters():
                assert w.grad is not None
                lr = (0.7 if name.startswith("head") else 0.1) * expected_factor
                g = w.grad + (0.01 if decay_all or w.dim() > 1 else 0.0) * w
                velocity[name] = 0.9 * velocity[name] + g if name in velocity else g.clone()
                w -= lr * (g + 0.9 * velocity[name] if nesterov else velocity[name])
    for (name, ours), (_, theirs) in zip(model.named_parameters(), oracle.named_parameters()):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9, msg=name)


def test_a_cosine_per_epoch_is_the_authors_scheduler() -> None:
    # Barlow Twins and VICReg step torch's CosineAnnealingLR once an epoch.
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    schedule = CosineSchedule(epochs=20, per="epoch")
    for epoch in range(20):
        for step in range(5):
            assert rate_factor(schedule, 5 * epoch + step, 5) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_a_cosine_per_step_falls_at_every_step_from_one() -> None:
    factors = [rate_factor(CosineSchedule(epochs=3), step, 4) for step in range(12)]
    assert factors[0] == 1.0
    assert all(a > b > 0 for a, b in pairwise(factors))


def test_milestones_are_epochs() -> None:
    schedule = MultiStepSchedule(name="multistep", epochs=20, milestones=(12, 16), gamma=0.2)
    factors = {epoch: rate_factor(schedule, 7 * epoch + 3, 7) for epoch in (0, 11, 12, 15, 16, 19)}
    assert factors == pytest.approx({0: 1.0, 11: 1.0, 12: 0.2, 15: 0.2, 16: 0.04, 19: 0.04})


def test_bn_eval_keeps_the_statistics_and_trains_the_weights() -> None:
    model = toy(recipe("bn=eval")).train()
    norm = model.backbone[1]
    assert isinstance(norm, nn.BatchNorm2d)
    before = norm.running_mean.clone() if norm.running_mean is not None else None
    model(batches(1)[0][0]).sum().backward()
    assert before is not None
    torch.testing.assert_close(norm.running_mean, before, atol=0, rtol=0)
    assert norm.weight.requires_grad
    model = toy(recipe()).train()
    model(batches(1)[0][0])
    assert not torch.equal(model.backbone[1].running_mean, before)  # type: ignore[index, union-attr]


def test_a_frozen_backbone_has_no_gradients_and_stays_in_eval() -> None:
    frozen = ("freeze_backbone=true", "bn=eval", "optimizer.base_lr_backbone=0", "head_init=uniform")
    config = recipe(*frozen)
    model = toy(config).train()
    assert not model.backbone.training
    model(batches(1)[0][0]).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "head.weight",
        "head.bias",
    ]
    groups = build_optimizer(model, config, 0.0, 0.1).param_groups
    assert sum(p.numel() for g in groups for p in g["params"]) == 7 * 5 + 7


def test_heads_start_as_their_protocols_say() -> None:
    zero, normal, uniform = (toy(recipe(f"head_init={how}")).head for how in ("zero", "normal", "uniform"))
    assert zero.weight.abs().sum() == 0
    assert 0.005 < normal.weight.std() < 0.02
    assert normal.bias.abs().sum() == 0
    assert 0.1 < uniform.weight.abs().max() <= 1 / math.sqrt(5)


def test_counts_agree_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 8, generator=generator)
    labels = torch.randint(0, 8, (50,), generator=generator)
    parts = zip(logits.split(13), labels.split(13))
    (found,) = count(((scores.unsqueeze(1), of) for scores, of in parts), torch.device("cpu"))
    assert found.images == 50
    for k, percent in ((1, found.top1_percent), (5, found.top5_percent)):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=np.arange(8))
        assert percent == pytest.approx(100 * expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["freeze_backbone=true"], "base_lr_backbone: 0"),
        (["freeze_backbone=true", "optimizer.base_lr_backbone=0"], "bn: eval"),
        (["optimizer.base_lr_backbone=0"], "freeze_backbone: true"),
        (["optimizer.lr_head=3"], "lr_head is stated as 3"),
        (["schedule={name: multistep, epochs: 10, milestones: [10], gamma: 0.1}"], "not before the end"),
        (["data.test_split=train"], "the split to test on is the split to train on"),
        (["image.size=96"], "does not fit"),
        (["labels.fraktion=0.1"], "labels.fraction"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(*overrides)


def test_a_normalized_head_does_not_see_the_scale_of_the_features() -> None:
    features = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for norm, alike in (("batch", True), ("none", False)):
        config = recipe(f"head_norm={norm}", "head_init=uniform")
        model = Classifier(nn.Identity(), 5, 7, config).double().train()
        assert torch.allclose(model(features), model(100 * features + 3), atol=1e-3) is alike
        assert {n for n, _ in model.named_parameters()} == {"head.weight", "head.bias"}
