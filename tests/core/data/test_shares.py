"""A share of annotated images: seeded, nested, every class in proportion."""

import numpy as np
import pytest

from carryover.configs import UserError
from carryover.core.data.shares import order_by_class, take_share

CLASSES = ("common", "usual", "rare")


def _counts(n: int = 400, seed: int = 0) -> np.ndarray:
    """Objects of three classes, in 9, 5 and 1 of ten images."""
    rng = np.random.default_rng(seed)
    present = rng.random((n, 3)) < (0.9, 0.5, 0.1)
    return present * rng.integers(1, 6, (n, 3))


def test_shares_of_one_seed_are_nested_and_those_of_two_seeds_differ() -> None:
    counts = _counts()
    before: set[int] = set()
    for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
        chosen, _ = take_share(counts, CLASSES, share, seed=3)
        assert before <= set(chosen) and len(chosen) == round(400 * share)
        assert chosen == sorted(set(chosen))
        before = set(chosen)
    assert take_share(counts, CLASSES, 0.1, 3) == take_share(counts, CLASSES, 0.1, 3)
    assert take_share(counts, CLASSES, 0.1, 3)[0] != take_share(counts, CLASSES, 0.1, 4)[0]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_every_class_has_about_its_share_where_a_plain_draw_may_lose_the_rare_one(share: float) -> None:
    counts = (_counts() > 0).astype(np.int64)
    totals = counts.sum(axis=0)
    ours, plain = [], []
    for seed in range(20):
        chosen, absent = take_share(counts, CLASSES, share, seed)
        assert not absent
        ours.append(np.abs(counts[chosen].sum(axis=0) / totals / share - 1).max())
        drawn = np.random.default_rng(seed).permutation(400)[: len(chosen)]
        plain.append(np.abs(counts[drawn].sum(axis=0) / totals / share - 1).max())
    assert np.mean(ours) < 0.5 * np.mean(plain)


def test_images_without_objects_are_drawn_in_proportion_too() -> None:
    counts = _counts()
    counts[::4] = 0
    chosen, _ = take_share(counts, CLASSES, 0.2, 0)
    empty = (counts[chosen].sum(axis=1) == 0).mean()
    assert empty == pytest.approx((counts.sum(axis=1) == 0).mean(), abs=0.05)


def test_classes_that_a_share_lacks_are_named() -> None:
    counts = np.zeros((100, 3), dtype=np.int64)
    counts[:, 0] = 1
    counts[0] = (0, 0, 1)
    counts[1] = (0, 1, 0)
    chosen, absent = take_share(counts, CLASSES, 0.01, 0)
    assert len(chosen) == 1 and len(absent) == 2


def test_an_order_has_every_image_once() -> None:
    assert sorted(order_by_class(_counts(57), 1)) == list(range(57))


def test_a_part_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no training images"):
        take_share(np.zeros((0, 3), dtype=np.int64), CLASSES, 0.5, 0)
