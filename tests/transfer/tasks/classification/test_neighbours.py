"""Weighted k-NN votes agree with scikit-learn, in any chunking."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from carryover.transfer.tasks.knn.model import Neighbourhood, count_correct, nearest, votes


def features(rows: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 16, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(rows) % classes
    return centres[labels] + 2 * torch.randn(rows, 16, generator=generator), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 0.1), (150, 0.1)])
def test_accuracy_equals_scikit_learns_weighted_cosine_classifier(k: int, temperature: float) -> None:
    bank, bank_labels = features(300, 7, seed=0)
    queries, truth = features(120, 7, seed=1)
    oracle = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d) / temperature), metric="cosine")
    probabilities = oracle.fit(bank.double(), bank_labels).predict_proba(queries.double())
    of_truth = probabilities[np.arange(len(truth)), truth]
    ahead = (probabilities > of_truth[:, None]).sum(axis=1)
    expected = [int(((ahead < n) & (of_truth > 0)).sum()) for n in (1, 5)]
    found = count_correct(queries, truth, bank, bank_labels, 7, [Neighbourhood(k, temperature)])
    assert found[0].tolist() == expected


def test_the_chunks_do_not_change_the_neighbours() -> None:
    bank, _ = features(300, 7, seed=0)
    queries, _ = features(50, 7, seed=1)
    (_, whole, whole_index), *_ = nearest(queries, bank, 40, query_rows=50, bank_rows=300)
    parts = list(nearest(queries, bank, 40, query_rows=7, bank_rows=23))
    assert torch.equal(torch.cat([index for _, _, index in parts]), whole_index)
    torch.testing.assert_close(torch.cat([s for _, s, _ in parts]), whole)


def test_neighbours_are_the_largest_cosines() -> None:
    bank, _ = features(90, 3, seed=0)
    queries, _ = features(10, 3, seed=1)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None].double(), bank[None].double(), dim=2)
    (_, similarity, index), *_ = nearest(queries, bank, 5)
    torch.testing.assert_close(similarity.double(), cosine.gather(1, index), atol=1e-6, rtol=0)
    assert torch.equal(index, cosine.argsort(dim=1, descending=True)[:, :5])


def test_all_neighbourhoods_in_one_search_equal_each_alone() -> None:
    bank, bank_labels = features(300, 7, seed=0)
    queries, truth = features(120, 7, seed=1)
    hows = [Neighbourhood(k, t) for k in (1, 20, 200) for t in (0.07, 0.1)]
    together = count_correct(queries, truth, bank, bank_labels, 7, hows)
    alone = [count_correct(queries, truth, bank, bank_labels, 7, [how])[0] for how in hows]
    assert torch.equal(together, torch.stack(alone))


def test_a_tiny_temperature_does_not_overflow() -> None:
    similarity = torch.tensor([[1.0, 0.5, 0.5]])
    vote = votes(similarity, torch.tensor([[2, 0, 0]]), 3, Neighbourhood(3, 1e-4))
    assert torch.isfinite(vote).all()
    assert vote.argmax() == 2
