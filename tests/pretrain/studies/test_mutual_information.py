"""EqCo's toy experiment draws what its equations say, and its bounds are bounds."""

import math

import pytest
import torch

from carryover.pretrain.studies.mutual_information import (
    Bound,
    ToyProtocol,
    correlated_pairs,
    correlation,
    eqco_table,
    lower_bound,
)

SMALL = ToyProtocol(
    information=(0.7, 1.5),
    pairs=(8, 32),
    alpha=64,
    dimension=2,
    hidden=32,
    embedding=8,
    steps=15,
    estimates=5,
)


def test_pairs_have_the_mutual_information_asked_for() -> None:
    rho = correlation(4.0, 20)
    assert -20 / 2 * math.log(1 - rho**2) == pytest.approx(4.0)
    x, y = correlated_pairs(40_000, 20, rho, torch.Generator().manual_seed(0))
    covariance = torch.cat([x, y], dim=1).T.cov()
    wanted = torch.eye(40)
    wanted[:20, 20:] = wanted[20:, :20] = rho * torch.eye(20)
    torch.testing.assert_close(covariance, wanted, rtol=0, atol=0.03)
    # The mutual information of any Gaussian, from the determinants of its covariances.
    S = covariance.double()
    measured = (S[:20, :20].logdet() + S[20:, 20:].logdet() - S.logdet()) / 2
    assert measured.item() == pytest.approx(4.0, abs=0.05)


@pytest.mark.parametrize("estimator", ["infonce", "eqco"])
def test_a_trained_critic_comes_near_the_truth_from_below(estimator: str) -> None:
    protocol = ToyProtocol(alpha=64, dimension=2, hidden=64, embedding=16, steps=800, lr=3e-3, estimates=200)
    value = lower_bound(protocol, "eqco" if estimator == "eqco" else "infonce", 1.0, 64, seed=0)
    assert 0.85 < value < 1.02


def test_without_a_margin_no_bound_passes_log_k_and_with_it_log_of_one_more_than_alpha() -> None:
    protocol = ToyProtocol(alpha=256, dimension=2, hidden=64, embedding=16, steps=600, lr=3e-3, estimates=50)
    plain = lower_bound(protocol, "infonce", 8.0, 16, seed=0)
    eqco = lower_bound(protocol, "eqco", 8.0, 16, seed=0)
    assert plain < math.log(16) < eqco < math.log(257)


def test_a_cell_depends_on_the_seed_and_its_place_alone() -> None:
    advanced = 0

    def advance() -> None:
        nonlocal advanced
        advanced += 1

    torch.manual_seed(1)
    table = list(eqco_table(SMALL, seed=3, advance=advance))
    assert [(b.information, b.estimator, b.pairs) for b in table[:3]] == [
        (0.7, "infonce", 8),
        (0.7, "infonce", 32),
        (0.7, "eqco", 8),
    ]
    assert len(table) == 8 and advanced == 8 * (SMALL.steps + SMALL.estimates)
    before = torch.random.get_rng_state()
    alone = lower_bound(SMALL, "eqco", 1.5, 32, seed=3)
    assert torch.random.get_rng_state().equal(before)
    assert table[-1] == Bound("eqco", 1.5, 32, alone)
    assert alone != lower_bound(SMALL, "eqco", 1.5, 32, seed=4)
