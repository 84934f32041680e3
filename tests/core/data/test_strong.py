"""RandAugment and random erasing in the loader: timm's pixels, seeded by sample, whoever makes them."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from carryover.core.data.augment import draw_view
from carryover.core.data.config import AugmentConfig, EraseConfig, ViewConfig
from carryover.core.data.datasets import MemoryImages
from carryover.core.data.draws import keys
from carryover.core.data.loader import EvaluationLoader, Loader
from carryover.core.data.strong import erased, rand_augment, seeded
from carryover.core.data.views import batch_views

POLICY = "rand-m9-mstd0.5-inc1"
N, SIDE = 24, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def augment(erase: EraseConfig | None = None, policy: str | None = POLICY, **more: object) -> AugmentConfig:
    view = ViewConfig(
        size=SIDE,
        scale=(0.3, 1.0),
        jitter=None,
        grayscale=0.0,
        blur=None,
        interpolation="bicubic",
        rand_augment=policy,
        erase=erase,
    )
    return AugmentConfig(views="single", view=view, **more)


@pytest.fixture(scope="module")
def data() -> MemoryImages:
    noise = torch.rand(N, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 255
    pixels = F.gaussian_blur(noise, [5, 5], [1.5]).mul(3).sub(255).clamp(0, 255).to(torch.uint8)
    return MemoryImages(pixels, [i % 4 for i in range(N)], list("abcd"), None)


def as_timm(key: int) -> None:
    random.seed(key)
    np.random.seed([key % 2**32, key // 2**32])  # noqa: NPY002
    torch.manual_seed(key)


def test_the_view_is_timms_from_the_crop_on(data: MemoryImages) -> None:
    config = augment(EraseConfig(p=0.6))
    # timm's own pipeline of MAE's fine-tuning, taken apart after its crop and flip.
    _, policy, finish = create_transform(
        input_size=SIDE,
        is_training=True,
        auto_augment=POLICY,
        interpolation="bicubic",
        re_prob=0.6,
        re_mode="pixel",
        re_count=1,
        mean=MEAN,
        std=STD,
        separate=True,
    )
    seen = 0
    for batch in Loader(data, config, 8, seed=3).epoch(5):
        at = batch.index.numpy()
        sides = np.full(len(at), 40)
        drawn = draw_view(config.view, keys(3, 1, 5, at, 0), sides, sides)
        for row, index in enumerate(at.tolist()):
            box = [int(side[row]) for side in (drawn.top, drawn.left, drawn.height, drawn.width)]
            crop = F.resized_crop(
                data.pixels[index], *box, size=[SIDE, SIDE], interpolation=InterpolationMode.BICUBIC
            )
            crop = F.horizontal_flip(crop) if drawn.flip[row] else crop
            as_timm(int(keys(3, 4, 5, index, 0)[0]))
            changed = policy(F.to_pil_image(crop))
            as_timm(int(keys(3, 5, 5, index, 0)[0]))
            # Half a level: normalization is one product and sum here, two steps there.
            torch.testing.assert_close(batch.views[0][row], finish(changed), rtol=0, atol=2e-6)
            seen += not np.array_equal(np.asarray(changed), np.asarray(F.to_pil_image(crop)))
    assert seen > N / 3, "RandAugment changed next to nothing"


def test_the_erased_rectangles_are_those_that_timm_erases() -> None:
    config = augment(EraseConfig(p=0.5, mode="pixel", count=3)).view
    own = keys(0, np.arange(64))
    ours = torch.zeros(64, 3, SIDE, SIDE)
    for one in erased(config, own):
        one.write(ours)
    theirs = torch.zeros(64, 3, SIDE, SIDE)
    erase = RandomErasing(0.5, mode="pixel", max_count=3, device="cpu")
    for image, key in zip(theirs, own.tolist()):
        as_timm(key)
        erase(image)
    assert torch.equal(ours, theirs)
    share = float((ours.flatten(1) != 0).any(1).float().mean())
    assert 0.3 < share < 0.7


@pytest.mark.parametrize("mode", ["rand", "const"])
def test_other_modes_are_timms_too(mode: str) -> None:
    config = augment(EraseConfig(p=1.0, mode=mode)).view
    own = keys(1, np.arange(5))
    ours, theirs = torch.ones(5, 3, SIDE, SIDE), torch.ones(5, 3, SIDE, SIDE)
    for one in erased(config, own):
        one.write(ours)
    for image, key in zip(theirs, own.tolist()):
        as_timm(key)
        RandomErasing(1.0, mode=mode, device="cpu")(image)
    assert torch.equal(ours, theirs) and not torch.equal(ours, torch.ones_like(ours))


def test_workers_order_ranks_and_a_resumed_epoch_change_no_pixel(data: MemoryImages) -> None:
    config = augment(EraseConfig(p=0.5))
    here = list(Loader(data, config, 8, seed=1).epoch(2))
    in_processes = list(Loader(data, config, 8, seed=1, workers=2).epoch(2))
    resumed = list(Loader(data, config, 8, seed=1).epoch(2, start_step=1))
    for a, b in zip(here, in_processes, strict=True):
        assert torch.equal(a.views[0], b.views[0])
    for a, b in zip(here[1:], resumed, strict=True):
        assert torch.equal(a.views[0], b.views[0])
    ranks = [list(Loader(data, config, 4, seed=1, rank=r, world=2).epoch(2)) for r in range(2)]
    for whole, *parts in zip(here, *ranks, strict=True):
        assert torch.equal(whole.views[0], torch.cat([p.views[0] for p in parts]))
    again = next(Loader(data, config, 8, seed=1).epoch(3))
    assert not torch.equal(again.views[0], here[0].views[0])


def test_an_erased_view_of_a_batched_data_set_has_the_same_rectangles(data: MemoryImages) -> None:
    by_image = augment(EraseConfig(p=0.7), policy=None, backend="loader")
    batched = augment(EraseConfig(p=0.7), policy=None, backend="batched")
    plain = augment(policy=None, backend="batched")
    # Far from black and white, where eight bits cut the kernel's overshoot off between its two passes.
    faint = MemoryImages(data.pixels // 4 + 90, data.labels, data.classes, None)
    found = [next(Loader(faint, c, 12, seed=0).epoch(0)).views[0] for c in (by_image, batched, plain)]
    # Noise is written after normalization, the same number whoever made the rest.
    erased_here = (found[1] != found[2]).any(1)
    assert erased_here.any() and torch.equal(
        found[0].permute(0, 2, 3, 1)[erased_here], found[1].permute(0, 2, 3, 1)[erased_here]
    )
    levels = (found[0] - found[1]).abs() * 255 * torch.tensor(STD)[:, None, None]
    # Half a level of the second pass, and of the first one times the kernel's sum of absolute values (1.25).
    assert levels.max() < 0.5 + 0.5 * 1.25


def test_testing_sees_neither(data: MemoryImages) -> None:
    strong, plain = augment(EraseConfig(p=1.0)), augment(policy=None)
    for a, b in zip(EvaluationLoader(data, strong, 8), EvaluationLoader(data, plain, 8), strict=True):
        torch.testing.assert_close(a.views[0], b.views[0], rtol=0, atol=1e-6)


def test_the_global_generators_are_left_as_they_were(data: MemoryImages) -> None:
    as_timm(11)
    expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    as_timm(11)
    next(Loader(data, augment(EraseConfig(p=1.0)), 8, seed=0).epoch(0))
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002
    as_timm(11)
    with pytest.raises(KeyError), seeded(5):
        random.random()
        raise KeyError
    assert random.random() == expected[0]


def test_bicubic_crops_are_pils(data: MemoryImages) -> None:
    """Keys' kernel of the batched views against PIL, in floats: modes F are not rounded."""
    config = augment(policy=None).view.model_copy(update={"size": 20, "scale": (0.2, 1.0)})
    sides = np.full(N, 40)
    drawn = draw_view(config, keys(0, np.arange(N)), sides, sides)
    ours = batch_views(data.pixels, config, drawn)
    for row in range(N):
        box = [int(side[row]) for side in (drawn.top, drawn.left, drawn.height, drawn.width)]
        top, left, height, width = box
        for channel in range(3):
            plane = Image.fromarray(data.pixels[row, channel].numpy().astype(np.float32), mode="F")
            cut = plane.crop((left, top, left + width, top + height)).resize(
                (20, 20), Image.Resampling.BICUBIC
            )
            theirs = torch.from_numpy(np.array(cut)).div(255).clamp(0, 1)
            theirs = theirs.flip(1) if drawn.flip[row] else theirs
            torch.testing.assert_close(ours[row, channel], theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", ["randaug", "rand-x3", "rand-m9.5", "original", "rand-p.7", "rand-m9-inc2"])
def test_another_policy_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rand_augment"):
        ViewConfig(rand_augment=text)


@pytest.mark.parametrize(
    "text", ["rand-m9-mstd0.5-inc1", "rand", "rand-m7-n3-p0.7-mmax15", "rand-mstd101-tweights", "rand-t3a"]
)
def test_every_policy_that_is_taken_is_one_of_timms(text: str) -> None:
    assert ViewConfig(rand_augment=text).rand_augment == text
    rand_augment_transform(text, {})


def test_batched_views_cannot_be_asked_for_with_rand_augment() -> None:
    with pytest.raises(ValueError, match="rand_augment works image by image"):
        augment(backend="batched")


def test_an_image_of_no_bits_is_black_whatever_pillow_says() -> None:
    # rand-m9-mstd0.5 reaches magnitude 10 in one of 44 operations; "PosterizeIncreasing" then keeps no bit.
    policy = rand_augment(augment(policy="rand-m10-inc1").view, MEAN)
    assert policy is not None
    image = torch.randint(1, 256, (3, SIDE, SIDE), dtype=torch.uint8)
    seen = []
    for key in range(200):
        with seeded(key):
            seen.append(policy(image))
    assert sum(not view.any() for view in seen) > 2
    assert sum(bool(view.any()) for view in seen) > 100
