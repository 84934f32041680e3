"""Weighted k-NN votes agree with scikit-learn, in any chunking."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from carryover.core.training.distributed import Ranks, part_of
from carryover.transfer.tasks.knn.model import (
    Neighborhood,
    bank_share,
    classify,
    largest,
    nearest,
    nearest_of_all,
    votes,
)
from tests.pretrain.ranks import on_ranks


def count_correct(queries, truth, bank, bank_labels, classes, hows) -> torch.Tensor:
    """Count the queries whose class is the first, and among the first five, for every neighborhood."""
    neighbors = nearest(queries, bank, max(how.k for how in hows))
    found = [g for _, g, _, _ in classify(neighbors, bank_labels, classes, hows)]
    hit = torch.cat(found) == truth[:, None, None]
    return torch.stack([hit[..., :n].any(dim=2).sum(dim=0) for n in (1, 5)], dim=1)


def features(rows: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, 16, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(rows) % classes
    return centers[labels] + 2 * torch.randn(rows, 16, generator=generator), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 0.1), (150, 0.1)])
def test_accuracy_equals_scikit_learns_weighted_cosine_classifier(k: int, temperature: float) -> None:
    bank, bank_labels = features(300, 7, seed=0)
    queries, truth = features(120, 7, seed=1)
    oracle = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d) / temperature), metric="cosine")
    probabilities = oracle.fit(bank.double(), bank_labels).predict_proba(queries.double())
    of_truth = probabilities[np.arange(len(truth)), truth]
    ahead = (probabilities > of_truth[:, None]).sum(axis=1)
    expected = [int(((ahead < n) & (of_truth > 0)).sum()) for n in (1, 5)]
    found = count_correct(queries, truth, bank, bank_labels, 7, [Neighborhood(k, temperature)])
    assert found[0].tolist() == expected


def test_the_chunks_do_not_change_the_neighbors() -> None:
    bank, _ = features(300, 7, seed=0)
    queries, _ = features(50, 7, seed=1)
    (_, whole, whole_index), *_ = nearest(queries, bank, 40, query_rows=50, bank_rows=300)
    parts = list(nearest(queries, bank, 40, query_rows=7, bank_rows=23))
    assert torch.equal(torch.cat([index for _, _, index in parts]), whole_index)
    torch.testing.assert_close(torch.cat([s for _, s, _ in parts]), whole)


def test_neighbors_are_the_largest_cosines() -> None:
    bank, _ = features(90, 3, seed=0)
    queries, _ = features(10, 3, seed=1)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None].double(), bank[None].double(), dim=2)
    (_, similarity, index), *_ = nearest(queries, bank, 5)
    torch.testing.assert_close(similarity.double(), cosine.gather(1, index), atol=1e-6, rtol=0)
    assert torch.equal(index, cosine.argsort(dim=1, descending=True)[:, :5])


def test_all_neighborhoods_in_one_search_equal_each_alone() -> None:
    bank, bank_labels = features(300, 7, seed=0)
    queries, truth = features(120, 7, seed=1)
    hows = [Neighborhood(k, t) for k in (1, 20, 200) for t in (0.07, 0.1)]
    together = count_correct(queries, truth, bank, bank_labels, 7, hows)
    alone = [count_correct(queries, truth, bank, bank_labels, 7, [how])[0] for how in hows]
    assert torch.equal(together, torch.stack(alone))


def test_of_equal_similarities_the_first_rows_are_neighbors_as_numpys_stable_sort_has_it() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 6, (40, 90), generator=generator).float()
    for k in (1, 7, 30, 90):
        found, place = largest(values, k)
        order = np.argsort(-values.numpy(), axis=1, kind="stable")[:, :k]
        assert np.array_equal(place.numpy(), order) and torch.equal(found, values.gather(1, place))
    # Vectors whose cosines are exact, with many equals, in chunks that part them.
    rng = np.random.default_rng(0)
    exact = np.zeros((150, 16), dtype=np.float32)
    for row in exact:
        row[rng.choice(16, 4, replace=False)] = rng.choice([-1, 1], 4)
    bank, queries = torch.from_numpy(exact[:120]), torch.from_numpy(exact[120:])
    cosine = exact[120:] @ exact[:120].T / 4
    expected = np.argsort(-cosine, axis=1, kind="stable")[:, :25]
    for rows in (23, 60, 120):
        (_, similarity, index), *_ = nearest(queries, bank, 25, query_rows=30, bank_rows=rows)
        assert np.array_equal(index.numpy(), expected)
        assert np.array_equal(similarity.numpy(), np.take_along_axis(cosine, expected, 1))
    # Every class has one vote of the same weight.
    neighbors = nearest(queries[:1], queries[:1].repeat(3, 1), 3)
    (_, guesses, most, tied), *_ = classify(neighbors, torch.tensor([4, 2, 5]), 6, [Neighborhood(3, 0.1)])
    assert guesses.tolist() == [[[2, 4, 5, -1, -1]]] and tied.all() and most[0, 0, 0] == most[0, 0, 2]


@pytest.mark.parametrize("order", ["nearest first", "nearest last", "mixed", "every row twice"])
def test_in_whatever_order_the_bank_stands_the_neighbors_are_numpys(order: str) -> None:
    """Where the nearest rows come last, every part holds more of them than are wanted."""
    rng = np.random.default_rng(3)
    # Of length 4, with whole numbers: similarities are exact, and many are equal.
    exact = np.zeros((640, 24), dtype=np.float32)
    for row in exact:
        row[rng.choice(24, 16, replace=False)] = rng.choice([-1, 1], 16)
    queries, bank = exact[:9], exact[9:]
    along = (bank @ queries[0]).argsort(kind="stable")
    bank = {
        "nearest first": bank[along[::-1]],
        "nearest last": bank[along],
        "mixed": bank,
        "every row twice": np.concatenate([bank, bank]),
    }[order]
    cosine = queries @ bank.T / 16
    expected = np.argsort(-cosine, axis=1, kind="stable")[:, :20]
    for rows in (8, 20, 50, len(bank)):
        (_, similarity, index), *_ = nearest(
            torch.from_numpy(queries), torch.from_numpy(bank), 20, None, rows
        )
        assert np.array_equal(index.numpy(), expected)
        assert np.array_equal(similarity.numpy(), np.take_along_axis(cosine, expected, 1))


def test_a_tiny_temperature_does_not_overflow() -> None:
    similarity = torch.tensor([[1.0, 0.5, 0.5]])
    vote = votes(similarity, torch.tensor([[2, 0, 0]]), 3, Neighborhood(3, 1e-4))
    assert torch.isfinite(vote).all()
    assert vote.argmax() == 2


def of_all_ranks(rank: int, queries: torch.Tensor, bank: torch.Tensor, k: int) -> tuple[torch.Tensor, ...]:
    """Find the neighbors of this rank's queries with its share of the bank; last, that share's length."""
    ranks = Ranks(rank, torch.distributed.get_world_size(), torch.device("cpu"))
    share = bank_share(len(bank), ranks)
    mine = part_of(len(queries), rank, ranks.world)
    parts = [
        (similarity, index, torch.arange(mine.stop - mine.start)[at])
        for at, similarity, index in nearest_of_all(queries, bank[share].clone(), share.start, mine, k, ranks)
    ]
    nothing = (torch.empty(0, k), torch.empty(0, k, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    found = [torch.cat(column) for column in zip(nothing, *parts)]
    return (*found, torch.tensor(share.stop - share.start))


@pytest.mark.parametrize(
    ("world", "rows", "questions", "k"),
    [(3, 10_000, 700, 200), (3, 300, 50, 250), (2, 4096 * 4, 1, 20)],
    ids=["three shares", "one rank holds all", "one query"],
)
def test_ranks_that_share_the_bank_find_what_one_process_finds(
    world: int, rows: int, questions: int, k: int, tmp_path: Path
) -> None:
    """Bit for bit, every row of the bank on one rank only; many rows of this bank are equal."""
    bank, _ = features(rows, 7, seed=0)
    bank[rows // 2 :] = bank[: rows - rows // 2].clone()
    queries, _ = features(questions, 7, seed=1)
    expected = list(nearest(queries, bank, k))
    found = on_ranks(world, of_all_ranks, tmp_path, queries, bank, k)
    assert torch.equal(torch.cat([one[0] for one in found]), torch.cat([s for _, s, _ in expected]))
    assert torch.equal(torch.cat([one[1] for one in found]), torch.cat([index for _, _, index in expected]))
    for one, own in zip(found, np.array_split(np.arange(questions), world)):
        assert one[2].tolist() == list(range(len(own)))
    held = [int(one[3]) for one in found]
    assert sum(held) == rows and max(held) <= -(-rows // 4096 // world) * 4096 + 4096
