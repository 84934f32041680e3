"""Schedules are the papers' curves, step by step."""

import math

import pytest
import torch

from carryover.configs import load
from carryover.core.training.schedules import cosine_momentum, warmup_cosine, warmup_multistep
from carryover.pretrain.config import ScheduleConfig


def test_the_rate_warms_up_on_a_line_and_falls_on_half_a_cosine() -> None:
    rates = [warmup_cosine(step, total=100, warmup=10) for step in range(100)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(10)])
    assert rates[10:] == pytest.approx([(1 + math.cos(math.pi * n / 90)) / 2 for n in range(90)])
    assert warmup_cosine(100, 100, 10) == pytest.approx(0)


def test_unigrads_floor_is_where_the_rate_starts_and_ends() -> None:
    rates = [warmup_cosine(step, total=100, warmup=10, floor=1e-3) for step in range(101)]
    assert rates[0] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-3)
    assert rates[10] == pytest.approx(1) and min(rates) >= 1e-3 * (1 - 1e-9)


def test_unigrads_cosine_is_that_of_its_public_code() -> None:
    def adjusted(step: int, steps: int, warmup: int) -> float:
        # fundamentalvision/UniGrad, pretrainer.py, adjust_lr at init_lr 1.
        if step < warmup:
            return (1 - 1e-3) * step / warmup + 1e-3
        return 1e-3 + 0.5 * (1 - 1e-3) * (1 + math.cos((step - warmup) * math.pi / steps))

    for name, warmup, last in (("unigrad_r50_100ep", 5, 0.00715), ("unigrad_r50_800ep_cutmix", 10, 0.00138)):
        schedule = load("pretrain", name).schedule
        steps = schedule.epochs * 12
        rates = [schedule.factor(step, 12) for step in range(steps)]
        assert rates == pytest.approx([adjusted(step, steps, warmup * 12) for step in range(steps)])
        # At the public code's 1,251 steps an epoch.
        assert schedule.factor(schedule.epochs * 1251 - 1, 1251) == pytest.approx(last, rel=0.01)
    with pytest.raises(ValueError, match="cosine_over: all is of the cosine"):
        ScheduleConfig(epochs=5, milestones=(2,), cosine_over="all")


def test_without_warmup_the_cosine_is_torchs() -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.01)
    for step in range(50):
        assert warmup_cosine(step, 50, floor=0.01) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_milestones_count_once_they_are_reached() -> None:
    rates = [warmup_multistep(step, (6, 9)) for step in range(11)]
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 3 + [0.01] * 2)
    warm = [warmup_multistep(step, (6,), warmup=4, warmup_factor=0.1) for step in range(5)]
    assert warm == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0])


def test_a_schedule_with_milestones_steps_where_torch_does() -> None:
    schedule = ScheduleConfig(epochs=5, milestones=(2, 4), gamma=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.5)
    for epoch in range(5):
        for step in range(3):
            assert schedule.factor(epoch * 3 + step, 3) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    cosine = ScheduleConfig(epochs=5, warmup_epochs=1, floor=0.1)
    assert [cosine.factor(s, 3) for s in range(15)] == [warmup_cosine(s, 15, 3, 0.1) for s in range(15)]


def test_byols_momentum_rises_from_its_base_to_one() -> None:
    rising = [cosine_momentum(step, 100, 0.996) for step in range(101)]
    # Grill et al. 2020: 1 - (1 - base) (cos(pi k / K) + 1) / 2.
    assert rising == pytest.approx([1 - 0.004 * (math.cos(math.pi * k / 100) + 1) / 2 for k in range(101)])
    assert {cosine_momentum(step, 100, 0.999, 0.999) for step in (0, 30, 100)} == {0.999}
