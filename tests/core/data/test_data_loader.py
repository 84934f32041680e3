"""Batches are a function of seed and epoch: not of workers, ranks, backend or interruptions."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from carryover.configs import UserError
from carryover.core.data.config import AugmentConfig, DataConfig, LocalConfig, TestViewConfig, ViewConfig
from carryover.core.data.prepared import Batch, Dataset, EvaluationLoader, Loader, build_dataset
from tests.core.data.folders import image_folder

VIEW = ViewConfig(size=14)
AUGMENT = AugmentConfig(view=VIEW, backend="batched")
BY_IMAGE = AugmentConfig(view=VIEW, backend="loader")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """25 images of 16 pixels in 5 classes."""
    return build_dataset(DataConfig(root=image_folder(tmp_path_factory.mktemp("data"), 5, 5, (16, 16))))


def same(ours: Iterable[Batch], theirs: Iterable[Batch]) -> bool:
    ours, theirs = list(ours), list(theirs)
    return len(ours) == len(theirs) and all(
        torch.equal(a.index, b.index)
        and a.label is not None
        and b.label is not None
        and torch.equal(a.label, b.label)
        and all(torch.equal(v, w) for v, w in zip(a.views, b.views, strict=True))
        for a, b in zip(ours, theirs)
    )


@pytest.mark.parametrize("augment", [AUGMENT, BY_IMAGE])
def test_a_batch_has_normalized_views_and_the_labels_of_its_images(
    data: Dataset, augment: AugmentConfig
) -> None:
    loader = Loader(data, augment, 8, seed=0)
    assert loader.steps_per_epoch == 3
    batches = list(loader.epoch(0))
    assert len(batches) == 3
    labels = np.array(data.labels)
    for batch in batches:
        assert [v.shape for v in batch.views] == [(8, 3, 14, 14)] * 2
        assert all(v.dtype == torch.float32 for v in batch.views)
        assert batch.index.dtype == torch.int64 and batch.label is not None
        assert batch.label.tolist() == labels[batch.index.numpy()].tolist()
        assert not torch.equal(*batch.views)
    seen = torch.cat([b.index for b in batches]).tolist()
    assert len(set(seen)) == 24


def test_normalization_is_by_mean_and_std(data: Dataset) -> None:
    plain = AugmentConfig(view=VIEW, mean=(0, 0, 0), std=(1, 1, 1))
    (raw,) = EvaluationLoader(data, plain, 25)
    (normal,) = EvaluationLoader(data, AUGMENT, 25)
    assert raw.views[0].min() >= 0 and raw.views[0].max() <= 1
    mean, std = torch.tensor(AUGMENT.mean).view(3, 1, 1), torch.tensor(AUGMENT.std).view(3, 1, 1)
    torch.testing.assert_close(normal.views[0], (raw.views[0] - mean) / std, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("augment", [AUGMENT, BY_IMAGE])
def test_an_epoch_is_the_same_however_it_is_loaded_and_wherever_it_resumes(
    data: Dataset, augment: AugmentConfig
) -> None:
    loader = Loader(data, augment, 8, seed=0)
    whole = list(loader.epoch(3))
    assert same(whole, loader.epoch(3))
    assert same(whole[2:], Loader(data, augment, 8, seed=0).epoch(3, start_step=2))
    assert not same(whole, loader.epoch(4))
    assert not same(whole, Loader(data, augment, 8, seed=1).epoch(3))


def test_workers_change_nothing_even_after_an_epoch_left_half_way(data: Dataset) -> None:
    alone = Loader(data, BY_IMAGE, 4, seed=0)
    helped = Loader(data, BY_IMAGE, 4, seed=0, workers=2)
    next(helped.epoch(0))
    assert same(alone.epoch(1), helped.epoch(1))
    assert same(alone.epoch(2, 3), helped.epoch(2, 3))
    assert same(alone.whole(), helped.whole())


def test_loading_takes_nothing_from_the_global_generator(data: Dataset) -> None:
    before = torch.get_rng_state()
    list(Loader(data, BY_IMAGE, 8, seed=0, workers=1).epoch(0))
    list(Loader(data, AUGMENT, 8, seed=0).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("augment", [AUGMENT, BY_IMAGE])
def test_ranks_share_the_very_same_global_batches(data: Dataset, augment: AugmentConfig) -> None:
    alone = Loader(data, augment, 6, seed=0)
    ranks = [Loader(data, augment, 2, seed=0, rank=r, world=3) for r in range(3)]
    for whole, *parts in zip(alone.epoch(1), *(r.epoch(1) for r in ranks), strict=True):
        assert torch.equal(whole.index, torch.cat([p.index for p in parts]))
        for v in range(2):
            together = torch.cat([p.views[v] for p in parts])
            # Matrix products may round differently in batches of another size.
            torch.testing.assert_close(whole.views[v], together, atol=1e-5, rtol=0)


def test_both_backends_show_the_same_views(data: Dataset) -> None:
    for a, b in zip(Loader(data, AUGMENT, 8, seed=0).epoch(0), Loader(data, BY_IMAGE, 8, seed=0).epoch(0)):
        assert torch.equal(a.index, b.index)
        for v, w in zip(a.views, b.views):
            # One goes through eight bits twice, and the jitter enlarges the first rounding error up to
            # 1.4 ** 3 times; a level is 1 / 255 / 0.225 after normalization.
            levels = (v - w).abs() * 255 * 0.225
            assert levels.max() < 5 and levels.mean() < 0.5


def test_views_of_every_kind_come_in_their_order(data: Dataset) -> None:
    local = LocalConfig(count=3, view=ViewConfig(size=8, scale=(0.05, 0.4), blur=None))
    crops = next(Loader(data, AugmentConfig(views="multicrop", view=VIEW, local=local), 4, seed=0).epoch(0))
    assert [v.shape[-1] for v in crops.views] == [14, 14, 8, 8, 8]
    single = next(Loader(data, AugmentConfig(views="single", view=VIEW), 4, seed=0).epoch(0))
    assert len(single.views) == 1
    # The first view is the same sample's whatever comes after it.
    assert torch.equal(single.views[0], crops.views[0])


def test_a_last_partial_batch_is_kept_when_asked(data: Dataset) -> None:
    loader = Loader(data, AUGMENT, 8, seed=0, drop_last=False)
    assert loader.steps_per_epoch == 4
    batches = list(loader.epoch(0))
    assert [len(b.index) for b in batches] == [8, 8, 8, 1]
    assert sorted(torch.cat([b.index for b in batches]).tolist()) == list(range(25))


def test_a_pass_over_everything_has_full_batches_on_every_rank(data: Dataset) -> None:
    ranks = [Loader(data, AUGMENT, 4, seed=0, rank=r, world=2) for r in range(2)]
    passes = [list(r.whole()) for r in ranks]
    assert [len(b.index) for p in passes for b in p] == [4] * 8
    assert set(torch.cat([b.index for p in passes for b in p]).tolist()) == set(range(25))
    # No augmentation: an image looks the same wherever it is met.
    first = {int(i): v for b in Loader(data, AUGMENT, 5, seed=7).whole() for i, v in zip(b.index, b.views[0])}
    for batch in passes[0]:
        for i, view in zip(batch.index.tolist(), batch.views[0]):
            assert torch.equal(view, first[i])


@pytest.mark.parametrize("backend", ["batched", "loader"])
def test_evaluation_goes_in_order_and_ranks_take_contiguous_parts(data: Dataset, backend: str) -> None:
    augment = AugmentConfig(view=VIEW, test=TestViewConfig(resize=12, size=10), backend=backend)
    loader = EvaluationLoader(data, augment, 10)
    assert len(loader) == 3
    batches = list(loader)
    assert [b.index.tolist() for b in batches] == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    assert batches[0].views[0].shape == (10, 3, 10, 10)
    parts = [EvaluationLoader(data, augment, 10, rank=r, world=2) for r in range(2)]
    assert torch.equal(
        torch.cat([b.views[0] for p in parts for b in p]), torch.cat([b.views[0] for b in batches])
    )


def test_a_batch_larger_than_the_data_set_is_refused(data: Dataset) -> None:
    with pytest.raises(UserError, match="batch_size 26 is more than the 25 images"):
        Loader(data, AUGMENT, 13, seed=0, world=2)
