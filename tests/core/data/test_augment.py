"""View parameters follow torchvision's distributions, and depend on nothing but what they are for."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from carryover.core.data.augment import ViewParameters, draw_view
from carryover.core.data.config import BlurConfig, JitterConfig, ViewConfig
from carryover.core.data.draws import keys, permutation, uniforms

N = 20_000


def drawn(config: ViewConfig, height: int = 60, width: int = 80, n: int = N, seed: int = 0) -> ViewParameters:
    return draw_view(config, keys(seed, np.arange(n)), np.full(n, height), np.full(n, width))


def close_in_distribution(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Mean and standard deviation agree within four standard errors."""
    scale = theirs.std()
    error = scale * math.sqrt(1 / len(ours) + 1 / len(theirs))
    assert abs(ours.mean() - theirs.mean()) <= 4 * error
    # The standard error of a standard deviation is at most scale / sqrt(n) for distributions this flat.
    assert abs(ours.std() - scale) <= 4 * error


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    u = uniforms(keys(5, np.arange(N)), 8)
    assert u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    expected = u.size / 20
    # Chi-squared with 19 degrees of freedom: 43.8 has probability 0.001.
    assert ((counts - expected) ** 2 / expected).sum() < 43.8
    assert np.abs(np.corrcoef(u.T) - np.eye(8)).max() < 5 / math.sqrt(N)
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 5 / math.sqrt(N)


@pytest.mark.parametrize("part", range(3))
def test_every_part_of_a_key_matters(part: int) -> None:
    one, other = [3, 4, 5], [3, 4, 5]
    other[part] += 1
    assert keys(*one) != keys(*other)
    assert keys(3, 4) != keys(4, 3)


def test_a_permutation_holds_everything_once_and_its_seed_decides_it() -> None:
    assert sorted(permutation(100, 1)) == list(range(100))
    assert (permutation(100, 1) == permutation(100, 1)).all()
    assert (permutation(100, 1) != permutation(100, 2)).any()


def test_a_sample_draws_the_same_alone_and_in_any_batch() -> None:
    config = ViewConfig(size=32, solarize=0.3)
    many = drawn(config, n=50)
    alone = draw_view(config, keys(0, np.array([17])), np.array([60]), np.array([80]))
    for name in ViewParameters.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(alone, name)[0], getattr(many, name)[17], err_msg=name)


def test_a_parameter_switched_off_leaves_the_others_as_they_were() -> None:
    full = drawn(ViewConfig(), n=50)
    bare = drawn(ViewConfig(jitter=None, blur=None, grayscale=0), n=50)
    np.testing.assert_array_equal(full.top, bare.top)
    np.testing.assert_array_equal(full.flip, bare.flip)
    assert not bare.jitter.any() and not bare.sigma.any() and not bare.grayscale.any()


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.05, 0.4)])
@pytest.mark.parametrize("shape", [(60, 80), (20, 300)])
def test_crops_are_those_of_random_resized_crop(scale: tuple[float, float], shape: tuple[int, int]) -> None:
    ours = drawn(ViewConfig(scale=scale), *shape)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(32, scale=scale)
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    theirs = [crop.make_params([image]) for _ in range(4000)]
    for name in ("top", "left", "height", "width"):
        close_in_distribution(getattr(ours, name), np.array([p[name] for p in theirs]))
    assert (ours.top >= 0).all() and (ours.top + ours.height <= shape[0]).all()
    assert (ours.left >= 0).all() and (ours.left + ours.width <= shape[1]).all()


def test_jitter_is_that_of_color_jitter() -> None:
    config = JitterConfig(brightness=0.4, contrast=0.3, saturation=1.2, hue=0.1, p=0.8)
    ours = drawn(ViewConfig(jitter=config))
    torch.manual_seed(0)
    transform = v2.ColorJitter(0.4, 0.3, 1.2, 0.1)
    theirs = [transform.make_params([]) for _ in range(4000)]
    for column, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        close_in_distribution(ours.factors[:, column], np.array([p[f"{name}_factor"] for p in theirs]))
    assert ours.jitter.mean() == pytest.approx(0.8, abs=4 * 0.4 / math.sqrt(N))


def test_every_order_of_the_jitter_is_equally_frequent() -> None:
    orders, counts = np.unique(drawn(ViewConfig()).order, axis=0, return_counts=True)
    assert len(orders) == 24
    # Chi-squared with 23 degrees of freedom: 49.7 has probability 0.001.
    assert ((counts - N / 24) ** 2 / (N / 24)).sum() < 49.7


def test_flags_have_their_probabilities() -> None:
    config = ViewConfig(flip=0.5, grayscale=0.2, solarize=0.1, blur=BlurConfig(sigma=(0.5, 1.5), p=0.3))
    ours = drawn(config)
    flags = {"flip": 0.5, "grayscale": 0.2, "solarize": 0.1}
    for name, p in flags.items():
        assert getattr(ours, name).mean() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / N))
    blurred = ours.sigma[ours.sigma > 0]
    assert len(blurred) / N == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / N))
    assert blurred.min() >= 0.5 and blurred.max() <= 1.5
    assert blurred.mean() == pytest.approx(1.0, abs=0.02)


def test_without_a_scale_the_center_is_taken() -> None:
    ours = drawn(ViewConfig(scale=None), n=1)
    assert (ours.top[0], ours.left[0], ours.height[0], ours.width[0]) == (0, 10, 60, 60)
